"""EfficientNets as data: their stages, how wide and how deep they are, and which stages are CondConv.

Sources: EfficientNet (Tan & Le, ICML 2019, table 1 and section 3.3), EfficientNet-Lite (the authors' release notes),
CondConv (Yang et al., NeurIPS 2019, section 4.1 and appendix A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from condconv_serve.errors import ConfigurationError

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
class BlockArgs:
    """One MBConv block after scaling. `se_filters` 0: no squeeze-and-excitation; `num_experts` 0: no CondConv."""

    name: str
    kernel_size: int
    strides: int
    expand_ratio: int
    in_filters: int
    out_filters: int
    se_filters: int
    num_experts: int
    activation: Activation


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
            for _ in range(math.ceil(self.depth_coefficient * stage.repeats)):
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
                        activation=self.activation,
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

    def changed(self, **overrides: Any) -> EfficientNetSpec:
        """The same network with some of its parameters changed.

        Args:
            overrides: new values for parameters named in `OVERRIDABLE`.

        Raises:
            ConfigurationError: an unknown parameter, or an impossible value.
        """
        if unknown := sorted(set(overrides) - set(OVERRIDABLE)):
            raise ConfigurationError(
                f"Unknown architecture parameter {', '.join(unknown)}; known are {', '.join(OVERRIDABLE)}."
            )
        for key, value in overrides.items():
            _check(key, value)
        spec = self.with_experts(overrides.pop("num_experts")) if "num_experts" in overrides else self
        return replace(spec, **overrides)

    def overrides(self, registered: EfficientNetSpec) -> dict[str, Any]:
        """The parameters in which this differs from the network that is registered under the same name."""
        return {key: getattr(self, key) for key in OVERRIDABLE if getattr(self, key) != getattr(registered, key)}


OVERRIDABLE = ("num_classes", "image_size", "width_coefficient", "depth_coefficient", "dropout_rate", "num_experts")
_WHOLE = ("num_classes", "image_size", "num_experts")
_LEAST = {"num_classes": 1, "image_size": 32, "dropout_rate": 0, "num_experts": 1}
# Keras follows a network by recursion, which fails somewhere above depth 6.
_MOST = {"num_classes": 1_000_000, "image_size": 2048, "depth_coefficient": 6, "dropout_rate": 0.99, "num_experts": 64}


def round_filters(filters: int, coefficient: float) -> int:
    """Scale a channel count: to the nearest multiple of 8, and one up if that lost more than 10 %."""
    scaled = filters * coefficient
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


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


ARCHITECTURES = (
    EfficientNetSpec(name="efficientnet-b0", stages=_b0_stages(0)),
    EfficientNetSpec(name="efficientnet-condconv-b0-4e", stages=_b0_stages(4)),
    EfficientNetSpec(name="efficientnet-condconv-b0-8e", stages=_b0_stages(8)),
    EfficientNetSpec(name="efficientnet-condconv-b0-8e-depth", stages=_b0_stages(8), depth_coefficient=1.1),
    EfficientNetSpec(name="efficientnet-lite0", stages=_b0_stages(0), activation="relu6", se_ratio=0.0),
    EfficientNetSpec(name="efficientnet-lite0-condconv-4e", stages=_b0_stages(4), activation="relu6", se_ratio=0.0),
)
"""Every registered EfficientNet."""


def _check(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"Architecture parameter {key} must be a number, not {value!r}.")
    whole, least, most = key in _WHOLE, _LEAST.get(key, 0.05), _MOST.get(key, 20)
    if not least <= value <= most or (whole and not isinstance(value, int)):
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"Architecture parameter {key} must be {kind} from {least} to {most}, not {value}.")
