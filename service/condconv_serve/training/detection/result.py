"""Writes the result of training a detector: the new bundle, with its average precision, origin and a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ROUTING, Label, Preprocessing, rows_of
from condconv_serve.domain.manifest import Accuracy, Provenance
from condconv_serve.routing.found import classes_in
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.tally import Counts
from condconv_serve.runtime.outputs import routing_layout
from condconv_serve.store import Bundle, NewBundle, write_bundle
from condconv_serve.tasks.average_precision import DetectionQuality, Found, quality_of_boxes
from condconv_serve.training.answers import answers_in_batches
from condconv_serve.training.detection.evaluation import DetectorEvaluation, select
from condconv_serve.training.detection.network import Detector
from condconv_serve.training.detection.photos import Photos
from condconv_serve.training.request import Epoch
from condconv_serve.training.result import Finished
from condconv_serve.training.saving import read_values, to_spec

_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedDetector:
    """A trained detector, and what its bundle is to say of it.

    Attributes:
        name: of the new model.
        version: of the new bundle.
        method: how it was made, in a sentence.
        parent: the bundle that training started from.
        detector: with the weights to write.
        preprocessing: of its photos.
        labels: of its classes.
        validation: photos to measure it with.
        dataset: what those photos are.
        history: all epochs; the first one is the starting point.
        best_epoch: the position of the epoch whose weights these are.
    """

    name: str
    version: str
    method: str
    parent: Bundle
    detector: Detector
    preprocessing: Preprocessing
    labels: Sequence[Label]
    validation: Photos
    dataset: str
    history: Sequence[Epoch[DetectorEvaluation]]
    best_epoch: int


def write_detector(trained: TrainedDetector, *, store: Path) -> Finished[DetectorEvaluation]:
    """Measure a trained detector with the engine that serves it, and write the bundle.

    Raises:
        BundleError: somebody else has written this version meanwhile.
        OSError: the disk is full.
    """
    parent, network = trained.parent, trained.detector.network
    network.trainable = True  # all layers: the next training chooses again
    quality, routing, predicted = _measure(trained)
    accuracy = Accuracy(
        dataset=trained.dataset,
        images=quality.images,
        transform=trained.preprocessing.transform,
        ap=quality.ap,
        ap50=quality.ap50,
        note=f"The same images chose epoch {trained.best_epoch}, which flatters a little.",
    )
    layout = routing_layout(network)
    path = write_bundle(
        store,
        NewBundle(
            name=trained.name,
            version=trained.version,
            task="detection",
            architecture=trained.detector.architecture,
            preprocessing=to_spec(trained.preprocessing),
            weights=read_values(network),
            labels=trained.labels,
            provenance=Provenance(
                source=f"{parent.manifest.name}/{parent.manifest.version}",
                method=trained.method,
                source_sha256=parent.weights_sha256,
            ),
            licence=parent.manifest.licence,
            model_card=_card(trained, quality),
            accuracy=(accuracy,),
            routing_profile=profile_of(routing, predicted, layout) if layout else None,
        ),
    )
    return Finished(
        path=path,
        start=trained.history[0].validation,
        best=trained.history[trained.best_epoch].validation,
        best_epoch=trained.best_epoch,
        accuracy=(accuracy,),
        history=[epoch.to_json() for epoch in trained.history],
    )


def _measure(trained: TrainedDetector) -> tuple[DetectionQuality, NDArray[Any], list[Counts]]:
    """The figures, and of each photo its routing weights and the classes that were found in it."""
    photos = trained.validation
    found: list[Found] = []
    routing: list[NDArray[Any]] = []
    predicted: list[Counts] = []
    answers = answers_in_batches(trained.detector.network, trained.preprocessing, photos.rows, batch_size=_BATCH)
    for number, output in enumerate(answers):
        found += select(output, photos.placements[number * _BATCH : (number + 1) * _BATCH])
        routing.append(output[ROUTING])
        predicted += [classes_in(row) for row in rows_of(output)]
    quality = quality_of_boxes(photos.in_pixels(), found, num_classes=len(trained.labels), by_size=False)
    return quality, np.concatenate(routing), predicted


def _card(trained: TrainedDetector, quality: DetectionQuality) -> str:
    parent, labels = trained.parent, trained.labels
    start, best = trained.history[0].validation, trained.history[trained.best_epoch].validation
    named = ", ".join(label.label for label in labels[:20])
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    lines = [
        f"# {trained.name}",
        "",
        f"A detector of {len(labels)} classes: {named}{more}.",
        "",
        "## How it was made",
        "",
        f"From `{parent.manifest.name}/{parent.manifest.version}`, {trained.method}.",
        "",
        "## What was measured",
        "",
        f"On {quality.images} validation photos with {quality.objects} objects, which also chose the epoch:",
        "",
        f"| | start | epoch {trained.best_epoch} |",
        "|---|---|---|",
        f"| AP (mean over overlaps of 0.5 to 0.95) | {start.ap:.1%} | {best.ap:.1%} |",
        f"| AP50 | {start.ap50:.1%} | {best.ap50:.1%} |",
        f"| loss | {start.loss:.3f} | {best.loss:.3f} |",
    ]
    if best.entropy:
        lines += [
            f"| routing entropy (1: all experts alike) | {start.mean_entropy:.3f} | {best.mean_entropy:.3f} |",
        ]
    lines += ["", "| class | objects | AP50 |", "|---|---|---|"]
    for one in quality.classes[:100]:
        value = "-" if one.ap50 is None else f"{one.ap50:.1%}"
        lines.append(f"| {labels[one.index].label.replace('|', '/')} | {one.objects} | {value} |")
    lines += ["", f"Licence of the weights that it started from: {parent.manifest.licence}.", ""]
    return "\n".join(lines)
