"""Guesses the architecture of weights from a few shapes, to help if you named a wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import ARCHITECTURES, family_of
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.spec import CLASSIFIER, HEAD, NetworkSpec, scaled_repeats
from condconv_serve.store.importers.assembly import Translation
from condconv_serve.store.importers.published_hints import Guess, guess, guess_detector

_BLOCK = re.compile(r"^block_(\d+)_")
_WIDTHS = (1.0, *(round(0.1 + 0.05 * step, 2) for step in range(39)))
_DEPTHS = tuple(round(0.1 * step, 1) for step in range(1, 41))


@dataclass(frozen=True, slots=True)
class Traits:
    """What tells our architectures apart: `widths` of the blocks' outputs, and the parts that have experts."""

    stem: int
    widths: tuple[int, ...]
    squeezes: bool
    condconv: tuple[str, ...]
    experts: int


def traits_of(architecture: EfficientNetSpec) -> Traits:
    """The traits of an architecture."""
    blocks = architecture.blocks()
    return Traits(
        stem=architecture.stem_filters,
        widths=tuple(block.out_filters for block in blocks),
        squeezes=any(block.se_filters for block in blocks),
        condconv=architecture.condconv,
        experts=architecture.num_experts,
    )


def traits_found(translation: Translation) -> Traits | None:
    """The traits of imported weights; None if the shapes that tell are missing."""
    shapes = {tensor.path: tensor.value.shape for tensor in translation.tensors}
    numbers = {int(match[1]) for path in shapes if (match := _BLOCK.match(path))}
    parts = (*(f"block_{number}" for number in sorted(numbers)), HEAD, CLASSIFIER)
    condconv = tuple(part for part in parts if f"{part}_routing/bias" in shapes)
    try:
        return Traits(
            stem=shapes["stem/kernel"][-1],
            widths=tuple(shapes[f"block_{number}_project_norm/gamma"][-1] for number in range(max(numbers) + 1)),
            squeezes=any("_se_" in path for path in shapes),
            condconv=condconv,
            experts=shapes[f"{condconv[0]}_routing/bias"][-1] if condconv else 0,
        )
    except (KeyError, IndexError, ValueError):
        return None


def hint(tensors: Mapping[str, Any], translation: Translation, asked: Any, *, upcycling: bool = False) -> str:
    """A sentence about what else the weights may be; empty if nothing is known.

    Args:
        tensors: as they were read.
        translation: what an importer found of them.
        asked: the architecture that they don't fit.
        upcycling: whether it is the static twin of the one asked for.
    """
    advice = _of_efficientnets(translation, asked, upcycling) if isinstance(asked, EfficientNetSpec) else None
    if advice is None and (found := guess(tensors, asked)) is not None:
        advice = _of_published(found, asked, upcycling)
    return f" By their shapes {advice}." if advice else detector_hint(tensors, asked, upcycling=upcycling)


def detector_hint(tensors: Mapping[str, Any], asked: Any, *, upcycling: bool = False) -> str:
    """The same, if it is the names that don't fit: they may be of a detector."""
    advice = guess_detector(tensors, asked, upcycling=upcycling)
    return f" By their names {advice}." if advice else ""


def _of_published(found: Guess, asked: Any, upcycling: bool) -> str | None:
    if found.registered.name == asked.name and not found.options:
        return None  # they are of the network asked for, so something else is wrong
    if upcycling and found.architecture.num_experts:
        return f"they have experts already: import them without --upcycle, with {found.arguments}"
    static = not found.registered.num_experts and not found.architecture.num_experts
    if static and asked.num_experts and family_of(asked) is family_of(found.registered):
        return _of_twin(found.architecture, asked)
    return f"they look like {found.arguments}"


def _of_efficientnets(translation: Translation, asked: EfficientNetSpec, upcycling: bool) -> str | None:
    found = traits_found(translation)
    if found is None or found == traits_of(asked):
        return None
    fitting = [
        (candidate, options) for candidate, options in _candidates(asked, found) if traits_of(candidate) == found
    ]
    if not fitting:
        return None
    candidate, options = min(fitting, key=lambda pair: len(pair[1]))  # the first one of those
    named = " ".join((f"--architecture {candidate.name}", *options))
    if upcycling and found.experts:
        return f"they have experts already: import them without --upcycle, with {named}"
    if asked.num_experts and not found.experts and _twins(asked, candidate):
        return _of_twin(candidate, asked)
    return f"they look like {named}"


def _of_twin(static: NetworkSpec, asked: NetworkSpec) -> str:
    sizes = [
        f"--override {name}={getattr(static, name):g} "
        for name in ("width_coefficient", "depth_coefficient")
        if getattr(static, name) != getattr(asked, name)
    ]
    size = " in another size" if sizes else ""
    return f"they are those of its static twin {static.name}{size}: {''.join(sizes)}--upcycle makes experts of them"


def _efficientnets() -> list[EfficientNetSpec]:
    return [architecture for architecture in ARCHITECTURES.values() if isinstance(architecture, EfficientNetSpec)]


def _candidates(asked: EfficientNetSpec, found: Traits) -> Iterator[tuple[EfficientNetSpec, tuple[str, ...]]]:
    """All registered architectures with the experts and blocks that were found; then in other widths.

    The one asked for comes first.
    """
    known = sorted(_efficientnets(), key=lambda architecture: architecture.name != asked.name)
    known = [architecture for architecture in known if bool(architecture.num_experts) <= bool(found.experts)]
    deep = [variant for architecture in known for variant in _in_depth(architecture, len(found.widths))]
    for width in _WIDTHS:
        for architecture, depth in deep:
            options: tuple[str, ...] = ()
            changes: dict[str, Any] = {}
            if found.experts not in (0, architecture.num_experts):
                changes["num_experts"] = found.experts
                options += (f"--experts {found.experts}",)
            if depth != architecture.depth_coefficient:
                changes["depth_coefficient"] = depth
                options += (f"--override depth_coefficient={depth:g}",)
            if width != architecture.width_coefficient:
                changes["width_coefficient"] = width
                options += (f"--override width_coefficient={width:g}",)
            if found.condconv != architecture.changed(depth_coefficient=depth).condconv:
                changes["condconv"] = found.condconv
                options += (f"--override condconv={','.join(found.condconv)}",)
            try:
                candidate = architecture.changed(**changes)
            except ConfigurationError:  # no such network
                continue
            yield candidate, options


def _in_depth(architecture: EfficientNetSpec, blocks: int) -> Iterator[tuple[EfficientNetSpec, float]]:
    """The depths in which an architecture has so many blocks, its own first; one for each way to spread them."""
    seen: set[tuple[int, ...]] = set()
    for depth in (architecture.depth_coefficient, *_DEPTHS):
        repeats = tuple(scaled_repeats(stage.repeats, depth) for stage in architecture.stages)
        if sum(repeats) == blocks and repeats not in seen:
            seen.add(repeats)
            yield architecture, depth


def _twins(conditional: EfficientNetSpec, static: EfficientNetSpec) -> bool:
    """Whether two architectures differ in their experts alone, but for a size that was asked for."""
    a, b = (traits_of(cast(EfficientNetSpec, ARCHITECTURES[each.name])) for each in (conditional, static))
    return (a.stem, a.widths, a.squeezes) == (b.stem, b.widths, b.squeezes)
