"""Routing weights by labelled class: how differently a network routes different things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import RoutingLayout, RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.effect_size import EffectSize, effect_size
from condconv_serve.routing.provenance import Provenance
from condconv_serve.routing.tally import Floats, Tally


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingByClass:
    """What `N` labelled images are routed to.

    Attributes:
        layout: of the network.
        names: of the `K` classes, sorted.
        images: `[K]`.
        mean: `[K, blocks, experts]`.
        deviation: `[K, blocks, experts]`, over the images of a class; NaN for a class of one image.
        overall: all images.
        effect: how much the classes explain, by block.
        weights: float32 `[N, blocks, experts]`, the images themselves.
        labels: `[N]`, the place of each image's class in `names`.
        files: their names `[N]`.
    """

    layout: RoutingLayout
    names: tuple[str, ...]
    images: NDArray[np.int64]
    mean: Floats
    deviation: Floats
    overall: Tally
    effect: EffectSize
    weights: NDArray[np.float32]
    labels: NDArray[np.int64]
    files: tuple[str, ...]

    def to_json(self, made_by: Provenance) -> dict[str, Any]:
        """All figures but the images' own, for programs; null where one can't be known."""
        effect = self.effect
        return {
            "model": {"name": made_by.model, "version": made_by.version},
            "made_by": made_by.to_json(),
            "images": self.overall.count,
            "chance": effect.chance,
            "unknown": effect.unknown,
            "resamples": effect.resamples,
            "blocks": [
                {
                    "block": block,
                    "share": number(effect.share[place]),
                    "low": number(effect.low[place]),
                    "high": number(effect.high[place]),
                    "p": number(effect.p[place]),
                    "raw_share": number(effect.raw[place]),
                    "between": number(effect.between[place]),
                    "within": number(effect.within[place]),
                    "entropy": float(self.overall.entropy_mean[place]),
                    "constant_experts": self.constant_experts(place),
                }
                for place, block in enumerate(self.layout.blocks)
            ],
            "classes": [
                {
                    "name": name,
                    "images": images,
                    "routing": self.layout.lists(mean),
                    "deviation": self.layout.lists(deviation) if images > 1 else None,
                }
                for name, images, mean, deviation in zip(
                    self.names, self.images.tolist(), self.mean, self.deviation, strict=True
                )
            ],
        }

    def constant_experts(self, block: int) -> list[int]:
        """Numbers of a block's experts that have the same weight for all images."""
        found: list[int] = np.flatnonzero(self.effect.constant[block, : self.layout.experts[block]]).tolist()
        return found

    def remarks(self) -> list[str]:
        """What to know before reading the figures, a sentence each."""
        effect, said = self.effect, []
        if effect.unknown:
            said.append(effect.unknown)
        alone = int((self.images == 1).sum())
        if alone and not effect.unknown:
            said.append(f"{alone} of {len(self.names)} classes have one image only, which says little of a class.")
        for place, block in enumerate(self.layout.blocks):
            constant = self.constant_experts(place)
            if len(constant) == self.layout.experts[place]:
                said.append(f"{block} gives all images the same weights, so no share can be computed.")
            elif constant:
                which = f"Expert{'s' if len(constant) > 1 else ''} {', '.join(map(str, constant))}"
                has = "have" if len(constant) > 1 else "has"
                said.append(f"{which} of {block} {has} the same weight for all images.")
        return said

    def chosen(self, most: int) -> list[int]:
        """Places of at most so many classes, those with the most images, in the order of their names."""
        return sorted(np.argsort(-self.images, kind="stable")[:most].tolist())


def number(value: float) -> float | None:
    """A figure for JSON; None in place of NaN."""
    return None if np.isnan(value) else float(value)


def by_class(traces: Sequence[tuple[str, RoutingTrace]], files: Sequence[str] | None = None) -> RoutingByClass:
    """Gather images by their label.

    Args:
        traces: label and routing weights of each image, at least one.
        files: their names, if they have some.

    Raises:
        InvalidParameter: a static network's empty routing.
    """
    layout = traces[0][1].layout
    if not layout:
        raise InvalidParameter("A static network has no routing.")
    counted = Counter(label for label, _ in traces)
    names = tuple(sorted(counted))
    place = {name: number for number, name in enumerate(names)}
    labels = np.array([place[label] for label, _ in traces])
    weights = np.stack([trace.weights for _, trace in traces])
    exact = weights.astype(np.float64)
    images = np.array([counted[name] for name in names])
    deviation = np.stack([exact[labels == number].std(axis=0) for number in range(len(names))])
    # Of the class, not of these images alone.
    deviation *= np.sqrt(images / np.maximum(images - 1, 1))[:, None, None]
    deviation[images == 1] = np.nan
    return RoutingByClass(
        layout=layout,
        names=names,
        images=images,
        mean=np.stack([exact[labels == number].mean(axis=0) for number in range(len(names))]),
        deviation=deviation,
        overall=Tally.of(exact, labels, layout),
        effect=effect_size(weights, labels),
        weights=weights,
        labels=labels,
        files=tuple(files) if files is not None else ("",) * len(traces),
    )
