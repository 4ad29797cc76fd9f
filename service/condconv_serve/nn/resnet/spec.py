"""ResNets of bottleneck blocks (He et al., CVPR 2016, table 1) as data.

With experts: Yang et al., NeurIPS 2019, section 4.1: the last three blocks, without their shortcuts, and the
classifier. The paper's multiply-adds show that the stride is in the 3x3 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from condconv_serve.nn.spec import CLASSIFIER, NetworkSpec, Padding, last_blocks, scaled_repeats

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks and inner channels of each stage; blocks return four times as many."""
_STEM = 64
_EXPANSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckArgs:
    """One block after scaling. `projects`: its shortcut is a convolution. `num_experts` 0: no CondConv."""

    name: str
    strides: int
    filters: int
    out_filters: int
    projects: bool
    num_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetSpec(NetworkSpec):
    """A ResNet without its weights.

    Attributes:
        stride_first: whether a block's stride is in its first 1x1 convolution, as in Keras, not in the 3x3.
        use_bias: whether convolutions have biases besides their norms', as in Keras.
    """

    padding: Padding = "symmetric"
    norm_epsilon: float = 1e-5
    dropout_rate: float = 0.0
    stride_first: bool = False
    use_bias: bool = False

    OVERRIDABLE: ClassVar[tuple[str, ...]] = (*NetworkSpec.OVERRIDABLE, "stride_first", "use_bias")

    @property
    def stem_filters(self) -> int:
        """Filters of the stem after width scaling."""
        return _scaled(_STEM, self.width_coefficient)

    def stage_sizes(self) -> tuple[int, ...]:
        """How many blocks each stage has."""
        return tuple(scaled_repeats(repeats, self.depth_coefficient) for repeats, _ in _STAGES)

    def block_names(self) -> tuple[str, ...]:
        """All blocks in order."""
        return tuple(f"block_{number}" for number in range(sum(self.stage_sizes())))

    def blocks(self) -> tuple[BottleneckArgs, ...]:
        """All blocks in order, scaled."""
        blocks: list[BottleneckArgs] = []
        for stage, ((_, filters), count) in enumerate(zip(_STAGES, self.stage_sizes(), strict=True)):
            inner = _scaled(filters, self.width_coefficient)
            for index in range(count):
                name = f"block_{len(blocks)}"
                blocks.append(
                    BottleneckArgs(
                        name=name,
                        strides=2 if stage and not index else 1,
                        filters=inner,
                        out_filters=_EXPANSION * inner,
                        projects=not index,
                        num_experts=self.experts_of(name),
                    )
                )
        return tuple(blocks)


def _scaled(filters: int, coefficient: float) -> int:
    return max(8, int(filters * coefficient))


ARCHITECTURES = (
    ResNetSpec(name="resnet-50"),
    ResNetSpec(name="condconv-resnet-50-8e", num_experts=8, condconv=(*last_blocks(3, of=16), CLASSIFIER)),
)
"""Every registered ResNet."""
