"""MobileNets (Howard et al., 2017, table 1) as data: thirteen depthwise separable blocks.

With experts: Yang et al., NeurIPS 2019, section 4.1: the blocks from the sixth on, and the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from condconv_serve.nn.spec import CLASSIFIER, NetworkSpec, last_blocks

_BLOCKS = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024))
"""Stride and output channels of each block."""
_STEM = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SeparableArgs:
    """One block after scaling: depthwise 3x3, then pointwise. `num_experts` 0: no CondConv."""

    name: str
    strides: int
    out_filters: int
    num_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileNetV1Spec(NetworkSpec):
    """A MobileNet without its weights. It has one depth.

    Attributes:
        pointwise_norm: whether the stem and the pointwise convolutions have batch norms. Otherwise they have biases, as
            where their norms were folded into them.
    """

    dropout_rate: float = 0.001
    pointwise_norm: bool = True

    OVERRIDABLE: ClassVar[tuple[str, ...]] = (
        *(name for name in NetworkSpec.OVERRIDABLE if name != "depth_coefficient"),
        "pointwise_norm",
    )

    @property
    def stem_filters(self) -> int:
        """Filters of the stem after width scaling."""
        return _scaled(_STEM, self.width_coefficient)

    def block_names(self) -> tuple[str, ...]:
        """All blocks in order."""
        return last_blocks(len(_BLOCKS), of=len(_BLOCKS))

    def blocks(self) -> tuple[SeparableArgs, ...]:
        """All blocks in order, scaled."""
        return tuple(
            SeparableArgs(
                name=name,
                strides=strides,
                out_filters=_scaled(filters, self.width_coefficient),
                num_experts=self.experts_of(name),
            )
            for name, (strides, filters) in zip(self.block_names(), _BLOCKS, strict=True)
        )


def _scaled(filters: int, coefficient: float) -> int:
    """Channels at a width: rounded down, as published, and 8 at least."""
    return max(8, int(filters * coefficient))


def _condconv(name: str, num_experts: int) -> MobileNetV1Spec:
    return MobileNetV1Spec(name=name, num_experts=num_experts, condconv=(*last_blocks(8, of=13), CLASSIFIER))


ARCHITECTURES = (
    MobileNetV1Spec(name="mobilenet-v1"),
    _condconv("condconv-mobilenet-v1-8e", 8),
    _condconv("condconv-mobilenet-v1-32e", 32),
)
"""Every registered MobileNetV1."""
