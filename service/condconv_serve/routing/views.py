"""Live statistics as plain values, for answers over any protocol and for the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from condconv_serve.domain import Label, ModelInfo, RoutedAnswer, RoutingLayout, RoutingProfile
from condconv_serve.routing.drift import BlockDrift, DriftMeter
from condconv_serve.routing.insight import ClassMeans, Insight, class_profile_of, insight
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import Window
from condconv_serve.routing.tally import EDGES, Tally

View = dict[str, Any]
"""A JSON object, with the field names of the native interface."""


def blocks_view(tally: Tally, drift: Sequence[BlockDrift] = ()) -> list[View]:
    """How each block's experts are used, and the block's drift, if known."""
    layout = tally.layout
    return [
        {
            "block": block,
            "entropy": {
                "mean": float(tally.entropy_mean[number]),
                "deviation": float(tally.entropy_deviation[number]),
            },
            "experts": [expert_view(tally, number, expert) for expert in range(layout.experts[number])],
            **({"drift": {**asdict(drift[number]), "alert": drift[number].alert}} if drift else {}),
        }
        for number, block in enumerate(layout.blocks)
    ]


def expert_view(tally: Tally, block: int, expert: int) -> View:
    """How one expert of a block, both by number, is used."""
    return {
        "expert": expert,
        "mean": float(tally.mean[block, expert]),
        "deviation": float(tally.deviation[block, expert]),
        "load": float(tally.load[block, expert]),
        "active": float(tally.active_share[block, expert]),
        "histogram": tally.histogram[block, expert].tolist(),
    }


def live_view(model: ModelInfo, live: RoutingState, *, window: Window, classes: int) -> View:
    """A window of live statistics, with its `classes` most frequent classes."""
    tally, profile = live.windows[window], model.routing_profile
    drift = [] if profile is None else DriftMeter(profile, live.layout).measure(tally)
    found, counts = tally.classes.counts()
    frequent = np.argsort(-counts, kind="stable")[:classes].tolist()
    return {
        "model": {"name": model.name, "version": model.version},
        "window": window,
        "seconds": round(live.seconds[window], 3),
        "images": tally.count,
        "histogram_edges": list(EDGES),
        "blocks": blocks_view(tally, drift),
        "drift_alert": any(block.alert for block in drift) if drift else None,
        "classes": {
            "known": len(found),
            "dropped_images": tally.classes.dropped_images,
            "most_frequent": [
                {**_named(model.labels, int(found[place])), "images": int(counts[place])} for place in frequent
            ],
        },
        "reference": None if profile is None else _reference(live.layout, profile),
    }


def state_view(state: RoutingState) -> View:
    """Figures of all windows of a state."""
    return {
        "model": {"name": state.model, "version": state.version},
        "windows": {
            window: {"images": tally.count, "blocks": blocks_view(tally)} for window, tally in state.windows.items()
        },
    }


def class_view(model: ModelInfo, live: RoutingState, index: int, *, window: Window) -> View:
    """How images of the predicted class `index` are routed, beside all images and the reference profile."""
    tally = live.windows[window]
    found = tally.classes.get(index)
    profile = class_profile_of(index, profile=model.routing_profile)
    return {
        "model": {"name": model.name, "version": model.version},
        "window": window,
        **_named(model.labels, index),
        "images": 0 if found is None else found[0],
        "routing": None if found is None else live.layout.lists(found[1]),
        "all_classes": {"images": tally.count, "routing": live.layout.lists(tally.mean)} if tally.count else None,
        "reference": None
        if profile is None
        else {"images": profile.images, "routing": live.layout.lists(profile.mean)},
    }


def expert_classes_view(
    model: ModelInfo, live: RoutingState, block: int, expert: int, *, window: Window, top: int, min_images: int
) -> View:
    """The `top` classes with the largest and the smallest mean weights for an expert; block and expert by number."""
    tally = live.windows[window]
    classes, counts = tally.classes.counts()
    means = tally.classes.means(block, expert)
    enough = np.flatnonzero(counts >= min_images)
    order = enough[np.argsort(-means[enough], kind="stable")]

    def used(places: Sequence[int]) -> list[View]:
        return [
            {**_named(model.labels, int(classes[p])), "images": int(counts[p]), "mean": float(means[p])} for p in places
        ]

    return {
        "model": {"name": model.name, "version": model.version},
        "window": window,
        "block": live.layout.blocks[block],
        "images": tally.count,
        "expert": expert,
        "usage": expert_view(tally, block, expert),
        "most": used(order[:top].tolist()),
        "least": used(order[::-1][:top].tolist()),
    }


def classes_to_ask(answers: Iterable[RoutedAnswer], model: ModelInfo) -> set[int]:
    """The predicted classes of which only live traffic may know how their images are routed."""
    best = {answer.best.index for answer in answers if answer.best is not None}
    return {index for index in best if class_profile_of(index, profile=model.routing_profile) is None}


def insight_view(answer: RoutedAnswer, model: ModelInfo | None, *, live: ClassMeans) -> View:
    """What stands out in one image's routing. Without the model or live statistics, some fields are absent.

    Args:
        answer: about the image.
        model: that gave it.
        live: of live traffic: images and mean weights by class, for those that `classes_to_ask` names.
    """
    known = None
    if model is not None and answer.best is not None:
        index = answer.best.index
        known = class_profile_of(index, profile=model.routing_profile, live=live.get(index))
    found = insight(answer.routing, profile=None if model is None else model.routing_profile, class_profile=known)
    return {
        "blocks": [
            {
                "block": block,
                "entropy": float(found.entropy[number]),
                "strongest": list(found.strongest[number]),
                **_distances(found, number),
            }
            for number, block in enumerate(answer.routing.layout.blocks)
        ],
        **_distances(found, -1),
        "unusual": found.unusual,
        "reference_images": found.reference_images,
        "class_profile": None
        if known is None
        else {"index": known.index, "images": known.images, "source": known.source},
    }


def _distances(found: Insight, place: int) -> View:
    return {
        name: None if (values := getattr(found, name)) is None else float(values[place])
        for name in ("reference_distance", "typical_distance", "unusual_above", "class_distance")
    }


def _reference(layout: RoutingLayout, profile: RoutingProfile) -> View:
    mean, deviation, load = (layout.lists(values) for values in (profile.mean, profile.deviation, profile.load))
    return {
        "images": profile.images,
        "blocks": [
            {
                "block": block,
                "entropy": float(profile.entropy[number]),
                "mean": mean[block],
                "deviation": deviation[block],
                "load": load[block],
            }
            for number, block in enumerate(layout.blocks)
        ],
    }


def _named(labels: Sequence[Label], index: int) -> View:
    """The class's names; a class that the model doesn't have can't be predicted by it."""
    label = labels[index]
    return {"index": index, "label": label.label, "synset": label.synset}
