"""EfficientNets as data: their stages, how wide and how deep they are, and which stages are CondConv.

Sources: EfficientNet (Tan & Le, ICML 2019, table 1 and section 3.3), EfficientNet-Lite (the authors' release notes),
CondConv (Yang et al., NeurIPS 2019, section 4.1 and appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.mbconv import BlockArgs
from condconv_serve.nn.spec import check_overrides, round_filters, scaled_repeats

Activation = Literal["swish", "relu6"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of equal blocks before scaling. `num_experts` 0 means ordinary convolutions."""

    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    in_filters: int
    out_filters: int
    num_experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientNetSpec:
    """An EfficientNet without its weights."""

    name: str
    stages: tuple[Stage, ...]
    activation: Activation = "swish"
    se_ratio: float = 0.25
    """Squeeze-and-excitation filters as a share of the block's input filters; 0 for none."""
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    stem_filters: int = 32
    head_filters: int = 1280
    image_size: int = 224
    num_classes: int = 1000
    dropout_rate: float = 0.2

    @property
    def num_experts(self) -> int:
        """Experts per CondConv layer; 0 in a static network."""
        return max(stage.num_experts for stage in self.stages)

    @property
    def scaled_stem_filters(self) -> int:
        """Filters of the stem after width scaling."""
        return round_filters(self.stem_filters, self.width_coefficient)

    @property
    def scaled_head_filters(self) -> int:
        """Filters of the head after width scaling."""
        return round_filters(self.head_filters, self.width_coefficient)

    def blocks(self) -> tuple[BlockArgs, ...]:
        """All blocks in order, scaled; block i is called `block_<i>`, counted from 0."""
        blocks: list[BlockArgs] = []
        for stage in self.stages:
            out_filters = round_filters(stage.out_filters, self.width_coefficient)
            in_filters = round_filters(stage.in_filters, self.width_coefficient)
            strides = stage.strides
            for _ in range(scaled_repeats(stage.repeats, self.depth_coefficient)):
                blocks.append(
                    BlockArgs(
                        name=f"block_{len(blocks)}",
                        kernel_size=stage.kernel_size,
                        strides=strides,
                        expand_ratio=stage.expand_ratio,
                        in_filters=in_filters,
                        out_filters=out_filters,
                        se_filters=max(1, int(in_filters * self.se_ratio)) if self.se_ratio else 0,
                        num_experts=stage.num_experts,
                    )
                )
                in_filters, strides = out_filters, 1
        return tuple(blocks)

    def routing_blocks(self) -> tuple[str, ...]:
        """Names of the CondConv blocks, in order."""
        return tuple(block.name for block in self.blocks() if block.num_experts)

    def with_experts(self, num_experts: int) -> EfficientNetSpec:
        """The same network with another number of experts in its CondConv stages.

        Raises:
            ConfigurationError: it has no CondConv stages.
        """
        if not self.num_experts:
            raise ConfigurationError(f"{self.name} has no CondConv blocks, so it can't have experts.")
        return replace(
            self, stages=tuple(replace(s, num_experts=num_experts) if s.num_experts else s for s in self.stages)
        )

    def static(self) -> EfficientNetSpec:
        """The same network with ordinary convolutions."""
        return replace(self, stages=tuple(replace(stage, num_experts=0) for stage in self.stages))

    def changed(self, **overrides: Any) -> EfficientNetSpec:
        """The same network with some of its parameters changed.

        Args:
            overrides: new values for parameters named in `OVERRIDABLE`.

        Raises:
            ConfigurationError: an unknown parameter, or an impossible value.
        """
        check_overrides(overrides, OVERRIDABLE)
        spec = self.with_experts(overrides.pop("num_experts")) if "num_experts" in overrides else self
        return replace(spec, **overrides)

    def overrides(self, registered: EfficientNetSpec) -> dict[str, Any]:
        """The parameters in which this differs from the network that is registered under the same name."""
        return {key: getattr(self, key) for key in OVERRIDABLE if getattr(self, key) != getattr(registered, key)}


OVERRIDABLE = ("num_classes", "image_size", "width_coefficient", "depth_coefficient", "dropout_rate", "num_experts")


def _b0_stages(num_experts: int) -> tuple[Stage, ...]:
    return (
        Stage(1, 3, 1, 1, 32, 16),
        Stage(2, 3, 2, 6, 16, 24),
        Stage(2, 5, 2, 6, 24, 40),
        Stage(3, 3, 2, 6, 40, 80),
        Stage(3, 5, 1, 6, 80, 112, num_experts),
        Stage(4, 5, 2, 6, 112, 192, num_experts),
        Stage(1, 3, 1, 6, 192, 320, num_experts),
    )


# Width, depth, size and dropout of B1 to B7, in the authors' code.
_LARGER = (
    (1.0, 1.1, 240, 0.2),
    (1.1, 1.2, 260, 0.3),
    (1.2, 1.4, 300, 0.3),
    (1.4, 1.8, 380, 0.4),
    (1.6, 2.2, 456, 0.4),
    (1.8, 2.6, 528, 0.5),
    (2.0, 3.1, 600, 0.5),
)

ARCHITECTURES = (
    EfficientNetSpec(name="efficientnet-b0", stages=_b0_stages(0)),
    *(
        EfficientNetSpec(
            name=f"efficientnet-b{number}",
            stages=_b0_stages(0),
            width_coefficient=width,
            depth_coefficient=depth,
            image_size=size,
            dropout_rate=dropout,
        )
        for number, (width, depth, size, dropout) in enumerate(_LARGER, 1)
    ),
    EfficientNetSpec(name="efficientnet-condconv-b0-4e", stages=_b0_stages(4)),
    EfficientNetSpec(name="efficientnet-condconv-b0-8e", stages=_b0_stages(8)),
    EfficientNetSpec(name="efficientnet-condconv-b0-8e-depth", stages=_b0_stages(8), depth_coefficient=1.1),
    EfficientNetSpec(name="efficientnet-lite0", stages=_b0_stages(0), activation="relu6", se_ratio=0.0),
    EfficientNetSpec(name="efficientnet-lite0-condconv-4e", stages=_b0_stages(4), activation="relu6", se_ratio=0.0),
)
"""Every registered EfficientNet."""
