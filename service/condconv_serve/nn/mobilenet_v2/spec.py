"""MobileNetV2s (Sandler et al., CVPR 2018, table 2) as data.

With experts: Yang et al., NeurIPS 2019, section 4.1: the last six blocks and the classifier. The paper's multiply-adds
fit better if the last eleven blocks and the head have experts, too: `-wide`.
"""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.nn.inverted import Activation, InvertedSpec, InvertedStage
from condconv_serve.nn.spec import CLASSIFIER, HEAD, last_blocks, round_filters

_STAGES = (
    InvertedStage(1, 3, 1, 1, 16),
    InvertedStage(2, 3, 2, 6, 24),
    InvertedStage(3, 3, 2, 6, 32),
    InvertedStage(4, 3, 2, 6, 64),
    InvertedStage(3, 3, 1, 6, 96),
    InvertedStage(3, 3, 2, 6, 160),
    InvertedStage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileNetV2Spec(InvertedSpec):
    """A MobileNetV2 without its weights."""

    stages: tuple[InvertedStage, ...] = _STAGES
    activation: Activation = "relu6"

    @property
    def head_filters(self) -> int:
        """Filters of the head: no fewer in narrow networks."""
        return round_filters(self.head, max(1.0, self.width_coefficient))


ARCHITECTURES = (
    MobileNetV2Spec(name="mobilenet-v2"),
    MobileNetV2Spec(name="condconv-mobilenet-v2-8e", num_experts=8, condconv=(*last_blocks(6, of=17), CLASSIFIER)),
    MobileNetV2Spec(
        name="condconv-mobilenet-v2-8e-wide", num_experts=8, condconv=(*last_blocks(11, of=17), HEAD, CLASSIFIER)
    ),
)
"""Every registered MobileNetV2."""
