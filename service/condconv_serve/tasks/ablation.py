"""Ablation: what the answer to an image would have been with different routing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from condconv_serve.domain import (
    ALL_BLOCKS,
    LOGITS,
    ROUTING,
    ClassScore,
    ModelInfo,
    RoutingChange,
    RoutingOverrides,
    RoutingTrace,
    Tensors,
    Variant,
)
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import best_classes, softmax

MAX_VARIANTS = 1024
"""Most variants of one ablation."""
MAX_TOGETHER = 128
"""Most variants that are computed together: of each, features of some hundred kilobytes wait for the next block."""
MAX_OUTPUT_BYTES = 64 * 2**20
"""Most that the outputs of these may take: a detector's are a megabyte each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VariantAnswer:
    """What the answer would have been.

    Attributes:
        variant: with which routing.
        probability: of the class that is the most probable one with the routing as it is.
        difference: how much more that is than with the routing as it is.
        top: the most probable class now.
        same_top: whether that is the same class.
        routing: the weights that were used, with what followed from the changes.
    """

    variant: Variant
    probability: float
    difference: float
    top: ClassScore
    same_top: bool
    routing: RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AblationAnswer:
    """The most probable class and the routing as they are, and each variant's answer."""

    top: ClassScore
    routing: RoutingTrace
    variants: tuple[VariantAnswer, ...]


def without_each_expert(
    model: ModelInfo, *, blocks: Sequence[str] | None, experts: Sequence[int] | None, uniform: bool
) -> tuple[Variant, ...]:
    """Variants that switch experts off one by one.

    Args:
        model: whose experts.
        blocks: names of the blocks; all if None.
        experts: which experts of these blocks; all if None.
        uniform: whether to try uniform routing in each block, too.

    Raises:
        InvalidParameter: there are none, or more than `MAX_VARIANTS`.
    """
    _demand_routing(model)
    counts = dict(zip(model.routing.blocks, model.routing.experts, strict=True))
    names = list(blocks or model.routing.blocks)
    chosen: dict[str, Sequence[int]] = {
        # An unknown block is refused by name, in `checked`.
        block: range(counts.get(block, min(model.routing.experts))) if experts is None else experts
        for block in names
    }
    count = sum(len(chosen[block]) + uniform for block in names)
    if not 1 <= count <= MAX_VARIANTS:
        raise InvalidParameter(
            f"These are {count} variants; there may be 1 to {MAX_VARIANTS}. Choose some blocks or experts."
        )
    changes: list[RoutingChange] = []
    for block in names:
        changes += [RoutingChange(block=block, off=(expert,)) for expert in chosen[block]]
        changes += [RoutingChange(block=block, uniform=True)] if uniform else []
    return tuple(Variant(changes=(change,)) for change in changes)


def checked(model: ModelInfo, variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The same variants, each with a name.

    Raises:
        InvalidParameter: there is no such block or expert, or weights of another number of experts.
    """
    _demand_routing(model)
    for variant in variants:
        for change in variant.changes:
            _check(model, change)
    return tuple(v if v.name else replace(v, name=", ".join(change.name for change in v.changes)) for v in variants)


def overrides(model: ModelInfo, variants: Sequence[Variant]) -> RoutingOverrides:
    """The routing of each variant as arrays."""
    shape = (len(variants), *model.routing.shape)
    weights, uniform = np.full(shape, np.nan, np.float32), np.zeros(shape[:2], np.bool_)
    for number, variant in enumerate(variants):
        for change in variant.changes:
            all_of_them = change.block == ALL_BLOCKS
            for block in range(shape[1]) if all_of_them else [model.routing.blocks.index(change.block)]:
                if change.uniform:
                    uniform[number, block], weights[number, block] = True, np.nan
                elif change.weights is not None:
                    given = [np.nan if weight is None else weight for weight in change.weights]
                    weights[number, block, : len(given)] = given
                else:
                    weights[number, block, list(change.off or ())] = 0
    return RoutingOverrides(weights, uniform)


def in_groups(model: ModelInfo, variants: Sequence[Variant]) -> list[Sequence[Variant]]:
    """Variants to compute together, so that features and outputs of a thousand never lie in memory at once."""
    numbers = sum(math.prod(output.shape) for output in model.outputs)
    size = max(1, min(MAX_TOGETHER, MAX_OUTPUT_BYTES // (4 * numbers)))
    return [variants[start : start + size] for start in range(0, len(variants), size)]


def answer(model: ModelInfo, variants: Sequence[Variant], output: Tensors) -> AblationAnswer:
    """Compare the variants with the unchanged image.

    Args:
        model: whose answers they are.
        variants: `V` of them.
        output: logits and routing weights of `V + 1` rows: the unchanged image, then the variants.
    """
    logits, used = output[LOGITS], output[ROUTING]
    probabilities = softmax(logits)
    tops = [best_classes(row, its, model.labels, top_k=1)[0] for row, its in zip(logits, probabilities, strict=True)]
    original = tops[0]
    return AblationAnswer(
        top=original,
        routing=RoutingTrace(model.routing, used[0]),
        variants=tuple(
            VariantAnswer(
                variant=variant,
                probability=float(its[original.index]),
                difference=float(its[original.index]) - original.probability,
                top=top,
                same_top=top.index == original.index,
                routing=RoutingTrace(model.routing, weights),
            )
            for variant, its, top, weights in zip(variants, probabilities[1:], tops[1:], used[1:], strict=True)
        ),
    )


def _demand_routing(model: ModelInfo) -> None:
    if not model.routing:
        raise InvalidParameter(f"{model.name} is a static network, without routing that could be changed.")


def _check(model: ModelInfo, change: RoutingChange) -> None:
    if change.block != ALL_BLOCKS and change.block not in model.routing.blocks:
        raise InvalidParameter(
            f"{model.name} has no CondConv block {change.block[:100]!r}; there are: {', '.join(model.routing.blocks)}, "
            f"and {ALL_BLOCKS}."
        )
    for block, experts in zip(model.routing.blocks, model.routing.experts, strict=True):
        if change.block not in (ALL_BLOCKS, block):
            continue
        if wrong := [expert for expert in change.off or () if not 0 <= expert < experts]:
            raise InvalidParameter(f"{block} has the experts 0 to {experts - 1}, but no {wrong[0]}.")
        if change.weights is not None and len(change.weights) != experts:
            raise InvalidParameter(
                f"weights of {block} must be {experts}, one for each expert, not {len(change.weights)}."
            )
