"""Pascal VOC's annotations: an XML file per photo, with the corners of each object's box in pixels counted from 1."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from condconv_serve.domain import Objects, can_be_label, readable
from condconv_serve.errors import DataSetError
from condconv_serve.files import read_limited
from condconv_serve.imaging.formats import IMAGE_SUFFIXES
from condconv_serve.inputs.annotations.annotated import AnnotatedImage, Annotations, Tally
from condconv_serve.inputs.annotations.coco import NO_AREA, NO_FILE, NO_NUMBERS, REPEATED

MAX_BYTES = 16 * 2**20
"""Of one photo's file."""
ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
UNREADABLE = "annotation files that can't be read"
UNNAMED = "objects without a name that a class can have"


def read_voc(files: Iterable[Path], directory: Path) -> Annotations:
    """Read Pascal VOC annotations.

    Args:
        files: the XML files, one per photo. The photo is called like its file, or as the file says.
        directory: of the data set. Photos are looked for in its folders `JPEGImages` and `images`, in itself, and
            beside the XML file.

    Returns:
        The photos that are there; those without objects, too. Classes are all names of objects, in alphabetical order.

    Raises:
        DataSetError: two files are for the same photo.
    """
    tally = Tally()
    found: dict[Path, tuple[Path, tuple[int, int] | None, list[_Object]]] = {}
    for file in files:
        try:
            root = _parse(file)
        except DataSetError as error:
            tally.add(UNREADABLE, str(error))
            continue
        photo = _photo(file, root, directory)
        if photo is None:
            tally.add(NO_FILE, readable(file.name))
        elif photo in found:
            raise DataSetError(f"{found[photo][0]} and {file} are both for the photo {readable(photo.name)}.")
        else:
            found[photo] = file, _size(root), _objects(root, file, tally)
    names = sorted({name for _, _, objects in found.values() for name, _, _ in objects})
    images = tuple(
        AnnotatedImage(photo, size, _to_arrays(objects, names)) for photo, (_, size, objects) in found.items()
    )
    return Annotations(images, tuple(names), tally.result())


_Object = tuple[str, tuple[float, float, float, float], bool]


class _WithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_: Any) -> None:
        """Refuse what may declare entities: a few lines of them can stand for gigabytes."""
        raise DataSetError("it declares a document type, which no annotation needs")


def _parse(file: Path) -> ElementTree.Element:
    name = readable(file.name)
    try:
        parser = ElementTree.XMLParser(target=_WithoutDoctype())
        parser.feed(read_limited(file, MAX_BYTES))
        root: ElementTree.Element = parser.close()
    except DataSetError as error:
        raise DataSetError(f"{name}: {error}") from error
    except OSError as error:
        raise DataSetError(f"{name}: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataSetError(f"{name}: no XML, {error}") from error
    if root.tag != "annotation":
        raise DataSetError(f"{name}: its root is {root.tag!r}, not 'annotation'")
    return root


def _photo(file: Path, root: ElementTree.Element, directory: Path) -> Path | None:
    folders = list(dict.fromkeys([directory / IMAGES, directory / "images", directory, file.parent]))
    said = (root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
    names = [file.with_suffix(suffix).name for suffix in sorted(IMAGE_SUFFIXES)]
    if said and "\0" not in said and Path(said).suffix.lower() in IMAGE_SUFFIXES:
        names = [said, *(name for name in names if name != said)]
    return next((path for name in names for folder in folders if (path := folder / name).is_file()), None)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; some tools write 0 for what they don't know."""
    values = [_number(root.findtext(f"size/{name}")) for name in ("width", "height")]
    width, height = (0 if value is None else int(value) for value in values)
    return (width, height) if width > 0 and height > 0 else None


def _objects(root: ElementTree.Element, file: Path, tally: Tally) -> list[_Object]:
    found: list[_Object] = []
    for item in root.iterfind("object"):
        name = (item.findtext("name") or "").strip()
        if not can_be_label(name):
            tally.add(UNNAMED, readable(file.name))
            continue
        values = [_number(item.findtext(f"bndbox/{edge}")) for edge in ("ymin", "xmin", "ymax", "xmax")]
        top, left, bottom, right = values
        if top is None or left is None or bottom is None or right is None:
            tally.add(NO_NUMBERS, readable(file.name))
            continue
        if bottom <= top or right <= left:
            tally.add(NO_AREA, readable(file.name))
            continue
        # Pixels are counted from 1, and the last one belongs to the box.
        box = (top - 1, left - 1, bottom, right)
        difficult = (item.findtext("difficult") or "0").strip() not in ("0", "")
        if any(name == other and box == at for other, at, _ in found):
            tally.add(REPEATED, readable(file.name))
            continue
        found.append((name, box, difficult))
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e9 else None


def _to_arrays(objects: list[_Object], names: list[str]) -> Objects:
    return Objects(
        np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4),
        np.array([names.index(name) for name, _, _ in objects], np.int64),
        np.array([difficult for _, _, difficult in objects], np.bool_),
    )
