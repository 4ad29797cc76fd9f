"""Routing weights by labelled class: how differently a network routes different things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import RoutingLayout, RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.tally import Floats, Tally


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingByClass:
    """What `N` labelled images are routed to.

    Attributes:
        layout: of the network.
        names: of the `K` classes, sorted.
        images: `[K]`.
        mean: `[K, blocks, experts]`.
        deviation: `[K, blocks, experts]`, over the images of a class.
        overall: all images.
    """

    layout: RoutingLayout
    names: tuple[str, ...]
    images: NDArray[np.int64]
    mean: Floats
    deviation: Floats
    overall: Tally

    @property
    def between(self) -> Floats:
        """How far classes are apart in each block `[blocks]`: the deviation of their means, root mean square."""
        weights = self.images / self.images.sum()
        squares = ((self.mean - self.overall.mean) ** 2 * weights[:, None, None]).sum(axis=0)
        result: Floats = np.sqrt(squares.sum(axis=1) / self.layout.experts)
        return result

    @property
    def within(self) -> Floats:
        """How far images of one class are apart in each block `[blocks]`: their deviation, root mean square."""
        weights = self.images / self.images.sum()
        squares = (self.deviation**2 * weights[:, None, None]).sum(axis=0)
        result: Floats = np.sqrt(squares.sum(axis=1) / self.layout.experts)
        return result

    @property
    def explained(self) -> Floats:
        """The share of each block's variance that lies between classes, `[blocks]`: 0 to 1."""
        between, within = self.between**2, self.within**2
        total = between + within
        return np.divide(between, total, out=np.zeros_like(between), where=total > 0)

    def to_json(self, *, model: Mapping[str, str]) -> dict[str, Any]:
        """All figures, for programs."""
        return {
            "model": dict(model),
            "images": self.overall.count,
            "blocks": [
                {"block": block, "between": between, "within": within, "share": share, "entropy": entropy}
                for block, between, within, share, entropy in zip(
                    self.layout.blocks,
                    self.between.tolist(),
                    self.within.tolist(),
                    self.explained.tolist(),
                    self.overall.entropy_mean.tolist(),
                    strict=True,
                )
            ],
            "classes": [
                {
                    "name": name,
                    "images": images,
                    "routing": self.layout.lists(mean),
                    "deviation": self.layout.lists(deviation),
                }
                for name, images, mean, deviation in zip(
                    self.names, self.images.tolist(), self.mean, self.deviation, strict=True
                )
            ],
        }

    def chosen(self, most: int) -> list[int]:
        """Places of at most so many classes, those with the most images, in the order of their names."""
        return sorted(np.argsort(-self.images, kind="stable")[:most].tolist())


def by_class(traces: Sequence[tuple[str, RoutingTrace]]) -> RoutingByClass:
    """Gather images by their label.

    Args:
        traces: label and routing weights of each image, at least one.

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
    weights = np.stack([trace.weights for _, trace in traces]).astype(np.float64)
    return RoutingByClass(
        layout=layout,
        names=names,
        images=np.array([counted[name] for name in names]),
        mean=np.stack([weights[labels == number].mean(axis=0) for number in range(len(names))]),
        deviation=np.stack([weights[labels == number].std(axis=0) for number in range(len(names))]),
        overall=Tally.of(weights, labels, layout),
    )
