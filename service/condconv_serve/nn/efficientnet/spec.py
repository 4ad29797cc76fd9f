"""EfficientNets as data: their stages, how wide and how deep they are, and which blocks are CondConv.

Sources: EfficientNet (Tan & Le, ICML 2019, table 1 and section 3.3), EfficientNet-Lite (the authors' release notes).
With experts: Yang et al., NeurIPS 2019, section 4.1 and appendix A: the blocks of the last three stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

from condconv_serve.nn.inverted import Activation, InvertedSpec, InvertedStage
from condconv_serve.nn.spec import last_blocks

_STAGES = (
    InvertedStage(1, 3, 1, 1, 16, squeezes=True),
    InvertedStage(2, 3, 2, 6, 24, squeezes=True),
    InvertedStage(2, 5, 2, 6, 40, squeezes=True),
    InvertedStage(3, 3, 2, 6, 80, squeezes=True),
    InvertedStage(3, 5, 1, 6, 112, squeezes=True),
    InvertedStage(4, 5, 2, 6, 192, squeezes=True),
    InvertedStage(1, 3, 1, 6, 320, squeezes=True),
)
_LITE_STAGES = tuple(replace(stage, squeezes=False) for stage in _STAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientNetSpec(InvertedSpec):
    """An EfficientNet without its weights."""

    stages: tuple[InvertedStage, ...] = _STAGES
    activation: Activation = "swish"

    def moved_to(self, other: Self) -> tuple[str, ...]:
        """Which parts have experts in the same network of another depth.

        A stage whose blocks all have experts is so in any depth, as in `efficientnet-condconv-b0-8e-depth`; in others
        blocks keep their distance from the stage's end.
        """
        found: list[str] = []
        for before, after in zip(_in_stages(self), _in_stages(other), strict=True):
            kept = {len(before) - index for index, name in enumerate(before) if name in self.condconv}
            whole = len(kept) == len(before)
            found += [name for index, name in enumerate(after) if whole or len(after) - index in kept]
        return (*found, *(part for part in self.other_parts() if part in self.condconv))


def _in_stages(spec: EfficientNetSpec) -> list[tuple[str, ...]]:
    """The names of the blocks of each stage."""
    names = iter(spec.block_names())
    return [tuple(islice(names, size)) for size in spec.stage_sizes()]


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
_LAST = last_blocks(8, of=16)

ARCHITECTURES = (
    EfficientNetSpec(name="efficientnet-b0"),
    *(
        EfficientNetSpec(
            name=f"efficientnet-b{number}",
            width_coefficient=width,
            depth_coefficient=depth,
            image_size=size,
            dropout_rate=dropout,
        )
        for number, (width, depth, size, dropout) in enumerate(_LARGER, 1)
    ),
    EfficientNetSpec(name="efficientnet-condconv-b0-4e", num_experts=4, condconv=_LAST),
    EfficientNetSpec(name="efficientnet-condconv-b0-8e", num_experts=8, condconv=_LAST),
    EfficientNetSpec(
        name="efficientnet-condconv-b0-8e-depth",
        depth_coefficient=1.1,
        num_experts=8,
        condconv=last_blocks(11, of=23),
    ),
    EfficientNetSpec(name="efficientnet-lite0", stages=_LITE_STAGES, activation="relu6"),
    EfficientNetSpec(
        name="efficientnet-lite0-condconv-4e",
        stages=_LITE_STAGES,
        activation="relu6",
        num_experts=4,
        condconv=_LAST,
    ),
)
"""Every registered EfficientNet."""
