"""COCO's annotations: one JSON document with images, categories, and a box `[x, y, width, height]` per object.

What the whole document depends on must be right, or it is refused: its lists, and the ids of images and categories. A
box that can't be right is left out, and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from condconv_serve.domain import Objects, can_be_label, readable
from condconv_serve.errors import DataSetError
from condconv_serve.files import FileTooLarge, read_limited
from condconv_serve.inputs.annotations.annotated import AnnotatedImage, Annotations, Tally

MAX_BYTES = 2**29
"""COCO's own largest file has 450 MB."""
NO_AREA = "boxes without an area"
NO_NUMBERS = "boxes that are no four finite numbers"
NO_FILE = "images that aren't there"
FOREIGN = "images whose file names lead out of the data set"
REPEATED = "boxes that are there twice"
UNUSED = "classes without a box"


@dataclass(slots=True)
class _Found:
    """Boxes of one image while they are collected."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    classes: list[int | str] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    known: set[Any] = field(default_factory=set)


def read_coco(file: Path, directory: Path) -> Annotations:
    """Read COCO annotations.

    Args:
        file: the JSON document.
        directory: of the data set. Images are looked for in it, in its folders `images` and the one that is called
            like the file (`train2017` for `instances_train2017.json`), and beside the file.

    Returns:
        The images that are there; those without objects, too. Classes are the categories that have a box, in the order
        of their ids.

    Raises:
        DataSetError: the document can't be read, or contradicts itself.
    """
    document = _read(file)
    tally = Tally()
    images = _by_id(document, "images", file)
    categories = _by_id(document, "categories", file)
    names = _names(categories, file)
    found: dict[int | str, _Found] = {key: _Found() for key in images}
    used: set[int | str] = set()
    for number, annotation in enumerate(_list(document, "annotations", file)):
        known = annotation.get("id") if isinstance(annotation, dict) else None
        label = f"annotation {known if isinstance(known, int | str) else f'no. {number + 1}'}"
        if not isinstance(annotation, dict):
            raise DataSetError(f"{file}: {label} is no object.")
        category, of = annotation.get("category_id"), annotation.get("image_id")
        if not _is_id(category) or category not in names:
            raise DataSetError(
                f"{file}: {label} has the category_id {category!r}, which `categories` doesn't list; it lists "
                f"{', '.join(map(str, list(names)[:10]))}."
            )
        if not _is_id(of) or of not in found:
            tally.add("boxes of images that `images` doesn't list", label)
            continue
        box = _box(annotation.get("bbox"), label, tally)
        if box is None:
            continue
        of_image = found[of]
        if (category, box) in of_image.known:
            tally.add(REPEATED, label)
            continue
        used.add(category)
        of_image.known.add((category, box))
        of_image.boxes.append(box)
        of_image.classes.append(category)
        of_image.crowd.append(bool(annotation.get("iscrowd")))
    for key in names.keys() - used:
        tally.add(UNUSED, names[key])
    return _assemble(images, found, {key: name for key, name in names.items() if key in used}, file, directory, tally)


def _assemble(
    images: Mapping[int | str, dict[str, Any]],
    found: Mapping[int | str, _Found],
    names: Mapping[int | str, str],
    file: Path,
    directory: Path,
    tally: Tally,
) -> Annotations:
    place = {key: number for number, key in enumerate(names)}
    folders = _folders(file, directory)
    result: list[AnnotatedImage] = []
    seen: dict[Path, int | str] = {}
    for key, image in images.items():
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataSetError(f"{file}: image {key} has no file_name.")
        path = _locate(name, folders, tally)
        if path is None:
            continue
        if path in seen:
            raise DataSetError(f"{file}: images {seen[path]} and {key} are the same file {readable(name)}.")
        seen[path] = key
        one = found[key]
        objects = Objects(
            np.array(one.boxes, np.float64).reshape(-1, 4),
            np.array([place[kind] for kind in one.classes], np.int64),
            np.array(one.crowd, np.bool_),
        )
        result.append(AnnotatedImage(path, _size(image), objects))
    return Annotations(tuple(result), tuple(names.values()), tally.result())


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_limited(file, MAX_BYTES))
    except FileTooLarge as error:
        raise DataSetError(f"{file} has {error.size} bytes; the most is {MAX_BYTES}.") from error
    except OSError as error:
        raise DataSetError(f"{file} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataSetError(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(document, dict):
        raise DataSetError(f"{file} holds no COCO annotations: it is no object with images, annotations, categories.")
    return document


def _list(document: Mapping[str, Any], name: str, file: Path) -> list[Any]:
    values = document.get(name)
    if not isinstance(values, list):
        raise DataSetError(f"{file} holds no COCO annotations: it has no list `{name}`.")
    return values


def _by_id(document: Mapping[str, Any], name: str, file: Path) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for number, value in enumerate(_list(document, name, file)):
        key = value.get("id") if isinstance(value, dict) else None
        if not _is_id(key):
            raise DataSetError(f"{file}: no. {number + 1} of `{name}` has no id.")
        if key in found:
            raise DataSetError(f"{file}: two of `{name}` have the id {key}.")
        found[key] = value
    return found


def _is_id(value: Any) -> TypeGuard[int | str]:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _names(categories: Mapping[int | str, dict[str, Any]], file: Path) -> dict[int | str, str]:
    """Names of all categories, by their ids in ascending order."""
    names: dict[int | str, str] = {}
    for key in sorted(categories, key=lambda key: (isinstance(key, str), key)):
        name = categories[key].get("name")
        if not isinstance(name, str) or not can_be_label(name):
            raise DataSetError(f"{file}: category {key} has no name that a class can have.")
        if name in names.values():
            raise DataSetError(f"{file}: two categories are called {name}.")
        names[key] = name
    return names


def _box(values: Any, label: str, tally: Tally) -> tuple[float, float, float, float] | None:
    if not isinstance(values, list) or len(values) != 4 or not all(_is_number(value) for value in values):
        tally.add(NO_NUMBERS, label)
        return None
    x, y, width, height = (float(value) for value in values)
    if width <= 0 or height <= 0:
        tally.add(NO_AREA, label)
        return None
    return y, x, y + height, x + width


def _is_number(value: Any) -> bool:
    # Far larger numbers are no pixels, and some no floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = (_whole(image.get(name)) for name in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _whole(value: Any) -> int:
    return int(value) if _is_number(value) else 0


def _folders(file: Path, directory: Path) -> list[Path]:
    part = file.stem.removeprefix("instances_")
    places = [directory, directory / "images", file.parent, file.parent / "images"]
    return list(dict.fromkeys([*places, directory / part, directory / "images" / part]))


def _locate(name: str, folders: list[Path], tally: Tally) -> Path | None:
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        tally.add(FOREIGN, readable(name))
        return None
    path = next((path for folder in folders if (path := folder / relative).is_file()), None)
    if path is None:
        tally.add(NO_FILE, readable(name))
    return path
