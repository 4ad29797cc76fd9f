"""What a data set says of its photos, as one frozen value, and what of it can't be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Objects
from condconv_serve.errors import DataSetError

MAX_NAMED = 4
"""How many of what was left out for the same reason a message names."""
_SPILL = 1.0
"""Pixels by which a box may reach beyond its photo unmentioned: some tools count pixels from 1, some from 0."""


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One photo and its objects, none perhaps.

    `size` is the width and height in pixels that the annotations are for; None if they don't say. Boxes aren't cut at
    the photo's edges yet: `place` does that, when the photo is known.
    """

    file: Path
    size: tuple[int, int] | None
    objects: Objects


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that can't be used: what, how often, and the first of them by name."""

    what: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        """In words."""
        more = f" and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        return f"{self.what}: {self.count} ({', '.join(self.examples)}{more})"


class Tally:
    """Counts what is left out, by reason."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._found: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, what: str, example: str) -> None:
        """Count one; the first few are named."""
        named = self._found.setdefault(what, [])
        self._counts[what] = self._counts.get(what, 0) + 1
        if len(named) < MAX_NAMED:
            named.append(example)

    def result(self) -> tuple[LeftOut, ...]:
        """All of it, in the order in which each reason came up first."""
        return tuple(LeftOut(what, self._counts[what], tuple(named)) for what, named in self._found.items())


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """A data set: its photos, the names of its classes, and what was left out."""

    images: tuple[AnnotatedImage, ...]
    names: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def named(self, names: Sequence[str], *, source: str, skip_unknown: bool = False) -> Annotations:
        """The same with the classes numbered as in `names`.

        Args:
            names: of all classes.
            source: what messages call the annotations.
            skip_unknown: whether boxes of other classes are left out rather than refused.

        Raises:
            DataSetError: a class has another name.
        """
        unknown = sorted(set(self.names) - set(names))
        if unknown and not (skip_unknown and len(unknown) < len(self.names)):
            raise DataSetError(f"{source}: unknown classes {', '.join(unknown)}. Known are {', '.join(names[:50])}.")
        number = np.array([names.index(name) if name in names else -1 for name in self.names], np.int64)
        images, skipped = [], 0
        for one in self.images:
            classes = number[one.objects.classes]
            skipped += int((classes < 0).sum())
            objects = Objects(one.objects.boxes, classes, one.objects.crowd)[classes >= 0]
            images.append(AnnotatedImage(one.file, one.size, objects))
        left_out = (LeftOut("boxes of unknown classes", skipped, tuple(unknown[:MAX_NAMED])),) if unknown else ()
        return Annotations(tuple(images), tuple(names), self.left_out + left_out)

    def fingerprint(self) -> str:
        """Changes with every photo's name and size in bytes, and with every box.

        Raises:
            DataSetError: a photo has gone.
        """
        digest = hashlib.sha256("\0".join(self.names).encode())
        for image in self.images:
            try:
                size = image.file.stat().st_size
            except OSError as error:
                raise DataSetError(f"{image.file} can't be read: {error.strerror}.") from error
            digest.update(os.fsencode(f"{image.file.parent.name}/{image.file.name}\0{size}\n"))
            digest.update(repr(image.size).encode())
            for values in (image.objects.boxes, image.objects.classes, image.objects.crowd):
                digest.update(values.tobytes())
        return digest.hexdigest()


def place(image: AnnotatedImage, width: int, height: int, tally: Tally) -> Objects:
    """The objects of a photo that has been read, cut at its edges. What lies outside is left out, and counted.

    Args:
        image: what was said of it.
        width: of the upright photo, in pixels.
        height: of the upright photo, in pixels.
        tally: counts boxes that are left out or cut.

    Raises:
        DataSetError: the annotations are for a photo of another size, so that no box can be right.
    """
    if image.size is not None and image.size != (width, height):
        turned = image.size == (height, width)
        advice = " Its EXIF data turn it: rotate its pixels, or annotate it upright." if turned else ""
        raise DataSetError(
            f"its annotations are for {image.size[0]} x {image.size[1]} pixels, but it has {width} x {height}.{advice}"
        )
    edges = np.array([height, width, height, width], np.float64)
    objects = image.objects
    boxes = np.clip(objects.boxes, 0, edges)
    inside: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    cut = inside & (np.abs(boxes - objects.boxes) > _SPILL).any(axis=1)
    for _ in range(int((~inside).sum())):
        tally.add("boxes outside of their photo", image.file.name)
    for _ in range(int(cut.sum())):
        tally.add("boxes that reach beyond their photo, which are cut at its edge", image.file.name)
    return Objects(boxes, objects.classes, objects.crowd)[inside]
