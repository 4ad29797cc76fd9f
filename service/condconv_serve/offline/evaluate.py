"""Evaluates one version of a model on labelled images, computed as a server would compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from condconv_serve.domain import ImageResult, Label, Manifest, readable
from condconv_serve.errors import DataSetError
from condconv_serve.inputs.files import LocalImage
from condconv_serve.offline.class_folders import LabelledFiles, find_classes
from condconv_serve.offline.interrupts import interrupts_held
from condconv_serve.offline.local_service import LocalService
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle, read_labels
from condconv_serve.tasks.quality import Judge, Judged, Quality, quality_of


@dataclass(slots=True)
class Evaluation:
    """An evaluation while it runs; `finish` gives its figures so far.

    Attributes:
        bundle: directory of the version.
        manifest: of the version.
        labels: of its classes.
        data: images and their classes.
        failures: images that can't be read, with the reason of each.
        hits: images whose most probable class is the right one.
    """

    bundle: Path
    manifest: Manifest
    labels: list[Label]
    data: LabelledFiles
    failures: list[tuple[str, str]] = field(default_factory=list)
    hits: int = 0
    _judged: list[Judged] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Images to judge."""
        return len(self.data.files)

    @property
    def done(self) -> int:
        """Images that are judged or can't be read."""
        return len(self._judged) + len(self.failures)

    def take(self, result: ImageResult[Judged]) -> None:
        """Count an image's result."""
        if result.prediction is None:
            self.failures.append((result.id, str(result.error)))
        else:
            self._judged.append(result.prediction)
            self.hits += result.prediction.rank == 1

    def finish(self) -> Quality:
        """The figures of the images so far.

        Raises:
            DataSetError: there is none that could be read.
        """
        if not self._judged:
            first = f"; the first one, {': '.join(self.failures[0])}" if self.failures else ""
            raise DataSetError(f"None of the {self.total} images could be judged{first}")
        return quality_of(self._judged, num_classes=len(self.labels))

    def to_json(self, quality: Quality) -> dict[str, Any]:
        """The figures, and what they are of."""
        figures = quality.to_json()
        return {
            "model": {"name": self.manifest.name, "version": self.manifest.version},
            "images": figures.pop("images"),
            "left_out": {
                "images": [{"filename": name, "error": error} for name, error in self.failures],
                "folders": list(self.data.skipped),
            },
            **figures,
            "classes": [
                {
                    "index": found.index,
                    "label": self.labels[found.index].label,
                    "synset": self.labels[found.index].synset,
                    "images": found.images,
                    "answers": found.answers,
                    "recall": found.recall,
                    "precision": found.precision,
                }
                for found in quality.classes
            ],
        }


def prepare(bundle: Path, directory: Path, *, skip_unknown: bool) -> Evaluation:
    """Find the images of a data set. The network isn't loaded yet.

    Args:
        bundle: directory of the version.
        directory: holds a folder per class; see `find_classes`.
        skip_unknown: whether folders that are no class are left out rather than refused.

    Raises:
        BundleError: the bundle is damaged.
        DataSetError: as `find_classes`.
    """
    opened = open_bundle(bundle)
    labels = list(read_labels(opened))
    return Evaluation(bundle, opened.manifest, labels, find_classes(directory, labels, skip_unknown=skip_unknown))


def run(settings: Settings, evaluation: Evaluation, *, progress: Callable[[Evaluation], None]) -> None:
    """Judge all images. Ctrl-C leaves those that are judged.

    They come in a mixed order, so that the figures of some are an estimate of the figures of all.

    Args:
        settings: as for a server.
        evaluation: gets the results.
        progress: called after each image.

    Raises:
        ServiceError: the bundle is unusable.
    """

    def images() -> Iterator[tuple[LocalImage, Judge]]:
        for place in np.random.default_rng(0).permutation(evaluation.total):
            file, index = evaluation.data.files[place]
            yield LocalImage(readable(file), file), Judge(index)

    with LocalService(settings, evaluation.bundle, release=False) as service:
        for result in service.stream(images()):
            with interrupts_held():
                evaluation.take(result)
                progress(evaluation)
