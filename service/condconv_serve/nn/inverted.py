"""Networks of inverted residual blocks as data: stages that are scaled to blocks.

MobileNetV2, MnasNet and EfficientNet are such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from condconv_serve.nn.mbconv import BlockArgs
from condconv_serve.nn.spec import CLASSIFIER, HEAD, NetworkSpec, round_filters, scaled_repeats

Activation = Literal["relu", "relu6", "swish"]


@dataclass(frozen=True, slots=True)
class InvertedStage:
    """A run of equal blocks before scaling.

    `squeezes` says whether they have squeeze-and-excitation, of a quarter of the block's input channels; `skips`
    whether their inputs are added to their outputs.
    """

    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    out_filters: int
    squeezes: bool = False
    skips: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class InvertedSpec(NetworkSpec):
    """A stem, stages of inverted residual blocks, a 1x1 head, and a classifier, without their weights.

    Attributes:
        stages: the blocks before scaling.
        stem: filters of the stem before scaling.
        head: filters of the head before scaling.
        activation: of all convolutions that have one, but for those that scale in squeeze-and-excitation.
    """

    stages: tuple[InvertedStage, ...]
    stem: int = 32
    head: int = 1280
    activation: Activation = "relu"

    @property
    def stem_filters(self) -> int:
        """Filters of the stem after width scaling."""
        return round_filters(self.stem, self.width_coefficient)

    @property
    def head_filters(self) -> int:
        """Filters of the head after width scaling."""
        return round_filters(self.head, self.width_coefficient)

    def stage_sizes(self) -> tuple[int, ...]:
        """How many blocks each stage has."""
        return tuple(scaled_repeats(stage.repeats, self.depth_coefficient) for stage in self.stages)

    def block_names(self) -> tuple[str, ...]:
        """All blocks in order."""
        return tuple(f"block_{number}" for number in range(sum(self.stage_sizes())))

    def other_parts(self) -> tuple[str, ...]:
        """What may have experts besides the blocks."""
        return (HEAD, CLASSIFIER)

    def blocks(self) -> tuple[BlockArgs, ...]:
        """All blocks in order, scaled."""
        blocks: list[BlockArgs] = []
        in_filters = self.stem_filters
        for stage, count in zip(self.stages, self.stage_sizes(), strict=True):
            out_filters = round_filters(stage.out_filters, self.width_coefficient)
            for index in range(count):
                name = f"block_{len(blocks)}"
                blocks.append(
                    BlockArgs(
                        name=name,
                        kernel_size=stage.kernel_size,
                        strides=1 if index else stage.strides,
                        expand_ratio=stage.expand_ratio,
                        in_filters=in_filters,
                        out_filters=out_filters,
                        se_filters=max(1, in_filters // 4) if stage.squeezes else 0,
                        num_experts=self.experts_of(name),
                        skips=stage.skips,
                    )
                )
                in_filters = out_filters
        return tuple(blocks)


def timm_layers(spec: InvertedSpec) -> dict[str, str]:
    """Timm's name of each layer: ours."""
    found = {"conv_stem": "stem", "bn1": "stem_norm"}
    blocks = iter(spec.blocks())
    for stage, count in enumerate(spec.stage_sizes()):
        for index in range(count):
            block = next(blocks)
            theirs = ("conv_dw", "conv_pw") if block.expand_ratio == 1 else ("conv_pw", "conv_dw", "conv_pwl")
            ours = ("depthwise", "project") if block.expand_ratio == 1 else ("expand", "depthwise", "project")
            place = f"blocks.{stage}.{index}"
            found[f"{place}.routing_fn"] = f"{block.name}_routing"
            for number, (published, own) in enumerate(zip(theirs, ours, strict=True), 1):
                found[f"{place}.{published}"] = f"{block.name}_{own}"
                found[f"{place}.bn{number}"] = f"{block.name}_{own}_norm"
            found |= {f"{place}.se.conv_{step}": f"{block.name}_se_{step}" for step in ("reduce", "expand")}
    return found | {"conv_head": "head", "bn2": "head_norm", "classifier": "logits"}
