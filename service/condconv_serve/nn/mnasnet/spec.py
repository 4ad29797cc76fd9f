"""MnasNet-A1s (Tan et al., CVPR 2019, figure 7) as data: with squeeze-and-excitation in some stages.

With experts: Yang et al., NeurIPS 2019, section 4.1: the last six blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.nn.inverted import InvertedSpec, InvertedStage
from condconv_serve.nn.spec import Padding, last_blocks

_STAGES = (
    InvertedStage(1, 3, 1, 1, 16, skips=False),
    InvertedStage(2, 3, 2, 6, 24),
    InvertedStage(3, 5, 2, 3, 40, squeezes=True),
    InvertedStage(4, 3, 2, 6, 80),
    InvertedStage(2, 3, 1, 6, 112, squeezes=True),
    InvertedStage(3, 5, 2, 6, 160, squeezes=True),
    InvertedStage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MnasNetSpec(InvertedSpec):
    """A MnasNet-A1 without its weights. Its head is as wide in narrow networks."""

    stages: tuple[InvertedStage, ...] = _STAGES
    padding: Padding = "symmetric"
    norm_epsilon: float = 1e-5

    @property
    def head_filters(self) -> int:
        """Filters of the head, at any width."""
        return self.head


ARCHITECTURES = (
    MnasNetSpec(name="mnasnet-a1"),
    MnasNetSpec(name="condconv-mnasnet-a1-8e", num_experts=8, condconv=last_blocks(6, of=16)),
)
"""Every registered MnasNet."""
