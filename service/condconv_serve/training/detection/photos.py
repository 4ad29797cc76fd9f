"""Annotated photos as rows for training: decoded once, with their boxes where 0 to 1 is the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Objects, Placement, Preprocessing
from condconv_serve.errors import DataSetError
from condconv_serve.inputs.annotations import Annotations, LeftOut, Tally, place
from condconv_serve.training.batches import Selection
from condconv_serve.training.dataset import decode_files


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """Decoded photos.

    Attributes:
        rows: of `N` photos.
        objects: in each, where 0 to 1 is the row.
        placements: where each row lies in its photo.
        failures: photos that are left out, with the reason of each.
        left_out: boxes that are left out or cut.
    """

    rows: Selection
    objects: tuple[Objects, ...]
    placements: tuple[Placement, ...]
    failures: tuple[tuple[Path, str], ...]
    left_out: tuple[LeftOut, ...]

    def in_pixels(self) -> list[Objects]:
        """The objects in pixels of their photos."""
        return [
            replace(objects, boxes=objects.boxes * _size(placement) + _corner(placement))
            for objects, placement in zip(self.objects, self.placements, strict=True)
        ]


def read_photos(
    annotations: Annotations,
    preprocessing: Preprocessing,
    directory: Path,
    *,
    max_pixels: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Photos:
    """Decode photos with the transform that serves them.

    Args:
        annotations: which photos, and what is in them.
        preprocessing: transform and size.
        directory: where the decoded photos go, or lie from an earlier run.
        max_pixels: most pixels that a photo's header may announce.
        progress: told how many of how many are done.

    Raises:
        DataSetError: no photo with an object can be used.
        OSError: the disk is full.
    """
    files = [image.file for image in annotations.images]
    decoded = decode_files(files, preprocessing, directory, max_pixels=max_pixels, progress=progress)
    failures, tally = list(decoded.failures), Tally()
    kept: list[int] = []
    found: list[Objects] = []
    placements: list[Placement] = []
    for row, (position, placement) in enumerate(zip(decoded.kept, decoded.placements, strict=True)):
        image = annotations.images[position]
        try:
            objects = place(image, placement.photo_width, placement.photo_height, tally)
        except DataSetError as error:
            failures.append((image.file, str(error)))
            continue
        kept.append(row)
        placements.append(placement)
        found.append(replace(objects, boxes=(objects.boxes - _corner(placement)) / _size(placement)))
    if all(objects.crowd.all() for objects in found):
        reason = f" The first one of those that can't be used, {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise DataSetError(f"None of the {len(files)} photos shows an object.{reason}")
    rows = Selection(decoded.rows, np.array(kept, np.int64))
    return Photos(rows, tuple(found), tuple(placements), tuple(failures), tally.result())


def split_photos(annotations: Annotations, *, share: float, seed: int) -> tuple[Annotations, Annotations]:
    """Part photos into those for training and those for validation, by chance; at least one for each.

    Raises:
        DataSetError: there is just one.
    """
    total = len(annotations.images)
    if total < 2:
        raise DataSetError("No photos are left for validation: there is just one. Add photos, or validation data.")
    count = min(max(round(share * total), 1), total - 1)
    order = np.random.default_rng(seed).permutation(total)
    parts = (np.sort(order[count:]), np.sort(order[:count]))
    training, validation = (
        replace(annotations, images=tuple(annotations.images[position] for position in part)) for part in parts
    )
    return training, validation


def _corner(placement: Placement) -> NDArray[np.float64]:
    return np.array([placement.top, placement.left] * 2)


def _size(placement: Placement) -> NDArray[np.float64]:
    return np.array([placement.height, placement.width] * 2)
