"""Evaluates one version of a detector on annotated photos, computed as a server would compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from condconv_serve.domain import Detection, ImageResult, Label, Manifest, Objects, readable
from condconv_serve.errors import DataSetError
from condconv_serve.inputs.annotations import AnnotatedImage, Annotations, LeftOut, Tally, load_annotations, place
from condconv_serve.inputs.files import LocalImage
from condconv_serve.offline.interrupts import interrupts_held
from condconv_serve.offline.local_service import LocalService
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle, read_labels
from condconv_serve.tasks.average_precision import (
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    DetectionQuality,
    Found,
    quality_of_boxes,
)
from condconv_serve.tasks.detection import Detect


@dataclass(slots=True)
class DetectorEvaluation:
    """An evaluation while it runs; `finish` gives its figures so far.

    Attributes:
        bundle: directory of the version.
        manifest: of the version.
        labels: of its classes.
        data: photos and what is in them.
        failures: photos that can't be used, with the reason of each.
    """

    bundle: Path
    manifest: Manifest
    labels: list[Label]
    data: Annotations
    failures: list[tuple[str, str]] = field(default_factory=list)
    _known: list[Objects] = field(default_factory=list)
    _found: list[Found] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)

    @property
    def total(self) -> int:
        """Photos to look at."""
        return len(self.data.images)

    @property
    def done(self) -> int:
        """Photos that are done or can't be used."""
        return len(self._known) + len(self.failures)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Boxes that don't count."""
        return self.data.left_out + self._tally.result()

    def take(self, image: AnnotatedImage, result: ImageResult[Detection]) -> None:
        """Count a photo's result."""
        answer = result.prediction
        if answer is None:
            self.failures.append((result.id, str(result.error)))
            return
        try:
            known = place(image, answer.width, answer.height, self._tally)
        except DataSetError as error:
            self.failures.append((result.id, str(error)))
            return
        boxes = [(one.box.ymin, one.box.xmin, one.box.ymax, one.box.xmax) for one in answer.objects]
        self._known.append(known)
        self._found.append(
            Found(
                np.array(boxes, np.float64).reshape(-1, 4),
                np.array([one.index for one in answer.objects], np.int64),
                np.array([one.score for one in answer.objects], np.float64),
            )
        )

    def finish(self) -> DetectionQuality:
        """The figures of the photos so far.

        Raises:
            DataSetError: there is none that could be used, or no object in them.
        """
        if not any(len(objects) for objects in self._known):
            first = f"; the first one that can't be used, {': '.join(self.failures[0])}" if self.failures else ""
            raise DataSetError(f"None of the {self.total} photos shows an object{first}")
        return quality_of_boxes(self._known, self._found, num_classes=len(self.labels))

    def to_json(self, quality: DetectionQuality) -> dict[str, Any]:
        """The figures, and what they are of."""
        return {
            "model": {"name": self.manifest.name, "version": self.manifest.version},
            "images": quality.images,
            "objects": quality.objects,
            "left_out": {
                "images": [{"filename": name, "error": error} for name, error in self.failures],
                "annotations": [
                    {"reason": one.what, "count": one.count, "examples": list(one.examples)} for one in self.left_out
                ],
            },
            "ap": quality.ap,
            "ap50": quality.ap50,
            "ap75": quality.ap75,
            "recall": quality.recall,
            "ap_by_size": quality.by_size,
            "classes": [
                {
                    "index": one.index,
                    "label": self.labels[one.index].label,
                    "synset": self.labels[one.index].synset,
                    "objects": one.objects,
                    "answers": one.found,
                    "ap": one.ap,
                    "ap50": one.ap50,
                    "ap75": one.ap75,
                    "recall": one.recall,
                    "precision_by_recall": [round(value, 4) for value in one.curve],
                }
                for one in quality.classes
                if one.objects or one.found
            ],
        }


def prepare_detector(
    bundle: Path, directory: Path, *, annotations: Path | None, skip_unknown: bool
) -> DetectorEvaluation:
    """Read a data set's annotations. The network isn't loaded yet.

    Args:
        bundle: directory of the version.
        directory: of the data set; see `load_annotations`.
        annotations: as there.
        skip_unknown: whether boxes of classes that the model doesn't have are left out rather than refused.

    Raises:
        BundleError: the bundle is damaged.
        DataSetError: the annotations can't be used, or name other classes.
    """
    opened = open_bundle(bundle)
    labels = list(read_labels(opened))
    found = load_annotations(directory, annotations)
    names = [label.label for label in labels]
    if set(found.names) - set(names) and set(found.names) <= {label.synset for label in labels}:
        names = [label.synset or label.label for label in labels]
    data = found.named(names, source=readable(annotations or directory), skip_unknown=skip_unknown)
    return DetectorEvaluation(bundle, opened.manifest, labels, data)


def run_detector(
    settings: Settings, evaluation: DetectorEvaluation, *, progress: Callable[[DetectorEvaluation], None]
) -> None:
    """Look at all photos. Ctrl-C leaves those that are done. They come in a mixed order, as in `evaluate.run`.

    Args:
        settings: as for a server.
        evaluation: gets the results.
        progress: called after each photo.

    Raises:
        ServiceError: the bundle is unusable.
    """
    images = evaluation.data.images
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    task = Detect(score_threshold=SCORE_THRESHOLD, max_detections=MAX_DETECTIONS)

    def asked() -> Iterator[tuple[LocalImage, Detect]]:
        for place_in_data in order:
            file = images[place_in_data].file
            yield LocalImage(readable(file), file), task

    with LocalService(settings, evaluation.bundle, release=False) as service:
        for number, result in zip(order, service.stream(asked()), strict=True):
            with interrupts_held():
                evaluation.take(images[number], result)
                progress(evaluation)
