"""Folders of images as rows for training: found, decoded exactly as for serving, and kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import MadeRow, Placement, Preprocessing, Row, can_be_label, readable
from condconv_serve.errors import DataSetError, ServiceError
from condconv_serve.files import FileTooLarge, read_limited, write_whole
from condconv_serve.imaging import make_row
from condconv_serve.imaging.formats import IMAGE_SUFFIXES
from condconv_serve.machine.cores import available_cores
from condconv_serve.runtime.official_jpeg import crop_jpeg
from condconv_serve.training.mapped import create_mapped

MAX_NAMED = 8
"""How many files of one kind a message lists."""
_MAX_FILE_BYTES = 256 * 2**20
_ROWS, _INDEX = "rows.npy", "rows.json"


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images on disk: `classes` int64 `[N]` are indexes of `names`; both are empty for unlabelled images."""

    files: tuple[Path, ...]
    classes: NDArray[np.int64]
    names: tuple[str, ...]

    def fingerprint(self) -> str:
        """Changes when files come, go, or change their size."""
        digest = hashlib.sha256()
        for file in self.files:
            size = (file.lstat() if _leads_nowhere(file) else file.stat()).st_size
            digest.update(os.fsencode(f"{file.parent.name}/{file.name}\0{size}\n"))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Rows:
    """Decoded images: `rows` `[N, image_size, image_size, 3]`, and which of the files `[N]` they came from.

    `failures` are the images that can't be read, with the reason of each; they are not among the rows.
    """

    rows: Row
    kept: NDArray[np.int64]
    classes: NDArray[np.int64]
    failures: tuple[tuple[Path, str], ...]


@dataclass(frozen=True, slots=True)
class DecodedFiles:
    """Decoded images of a list of files.

    Attributes:
        rows: `[N, image_size, image_size, 3]`.
        kept: which of the files they came from.
        placements: where each row lies in its photo.
        failures: files that can't be read, with the reason of each.
    """

    rows: Row
    kept: list[int]
    placements: list[Placement]
    failures: tuple[tuple[Path, str], ...]


def find_labelled(directory: Path, *, names: Sequence[str] | None = None) -> ImageFiles:
    """Find the images of a data set with a folder per class.

    Args:
        directory: holds one folder per class; folders below those belong to the class, hidden ones are passed over.
        names: the classes in their order, if they are known; the folders' names in alphabetical order if None. A
            folder may be missing then.

    Raises:
        DataSetError: there is no such directory, fewer than two classes, a class without images, an unknown one, or
            one that is not named in UTF-8.
    """
    children = _children(directory)
    if dead := [child.name for child in children if _leads_nowhere(child)]:
        raise DataSetError(f"{directory}: the link {dead[0]} leads nowhere.")
    folders = {child.name: child for child in children if child.is_dir()}
    if odd := [name for name in folders if not can_be_label(name)]:
        raise DataSetError(
            f"{directory}: no class can be named after the folder {readable(min(odd))!r}, which is blank, not UTF-8, "
            "or holds control characters. Rename it."
        )
    if names is None:
        if len(folders) < 2:
            loose = sum(_is_image(child) for child in children)
            hint = f", but {loose} images that lie beside them" if loose else ""
            raise DataSetError(
                f"{directory} holds {_count(len(folders), 'class folder')}{hint}; a data set has a folder of images "
                f"for each class, and at least two.{_hint(children)}"
            )
        names = sorted(folders)
    elif unknown := sorted(set(folders) - set(names)):
        raise DataSetError(
            f"{directory} holds classes that the training data hasn't: {_some(unknown)}. Known are {_some(names)}."
        )
    files: list[Path] = []
    classes: list[int] = []
    empty: list[str] = []
    for index, name in enumerate(names):
        if name not in folders:
            continue
        images = _images(folders[name])
        files += images
        classes += [index] * len(images)
        if not images:
            empty.append(name)
    if empty:
        hint = _hint(children)
        raise DataSetError(
            f"{directory}: no image in the class {_folders(empty)}. Add some, or remove the folder.{hint}"
        )
    if not files:
        raise DataSetError(f"{directory} holds no image of any class.")
    return ImageFiles(tuple(files), np.array(classes, np.int64), tuple(names))


def find_unlabelled(directory: Path) -> ImageFiles:
    """Find all images below a directory.

    Raises:
        DataSetError: there is no such directory, or no image in it.
    """
    _children(directory)
    images = _images(directory)
    if not images:
        raise DataSetError(f"{directory} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return ImageFiles(tuple(images), np.zeros(0, np.int64), ())


def read_rows(
    images: ImageFiles,
    preprocessing: Preprocessing,
    directory: Path,
    *,
    max_pixels: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """Decode images with the transform that serves them, into a file that is mapped, not loaded.

    Args:
        images: what to decode.
        preprocessing: transform and size.
        directory: where the file goes; if it holds the finished file of the same images, nothing is decoded again.
        max_pixels: most pixels that an image's header may announce.
        progress: told how many of how many are done.

    Raises:
        DataSetError: none can be read, or none of a class.
        OSError: the disk is full.
    """
    decoded = decode_files(images.files, preprocessing, directory, max_pixels=max_pixels, progress=progress)
    classes = images.classes[decoded.kept] if images.names else images.classes
    if unread := sorted(set(images.classes.tolist()) - set(classes.tolist())):
        raise DataSetError(f"No image of the class {_folders([images.names[index] for index in unread])} can be read.")
    return Rows(decoded.rows, np.array(decoded.kept), classes, decoded.failures)


def decode_files(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    directory: Path,
    *,
    max_pixels: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DecodedFiles:
    """Decode images as `read_rows` does.

    Raises:
        DataSetError: none can be read.
        OSError: the disk is full.
    """
    size, total = preprocessing.image_size, len(files)
    directory.mkdir(parents=True, exist_ok=True)
    file, index = directory / _ROWS, directory / _INDEX
    if not index.exists():  # written last
        store = create_mapped(file, dtype=preprocessing.row_type, shape=(total, size, size, 3))
        found = _Index([], [], [])

        with ThreadPoolExecutor(available_cores()) as threads:
            decode = partial(_decode, preprocessing=preprocessing, max_pixels=max_pixels)
            for position, made in enumerate(threads.map(decode, files)):
                if isinstance(made, str):
                    found.failures.append((str(files[position]), made))
                else:
                    assert made.placement is not None
                    store[len(found.kept)] = made.row
                    found.kept.append(position)
                    found.placements.append(asdict(made.placement))
                progress(position + 1, total)
        store.flush()
        if not found.kept:
            first, reason = found.failures[0]
            raise DataSetError(f"None of the {total} images can be read; the first one, {first}: {reason}")
        write_whole(index, json.dumps(asdict(found)))
    known = _Index(**json.loads(index.read_text()))
    return DecodedFiles(
        np.load(file, mmap_mode="r")[: len(known.kept)],
        known.kept,
        [Placement(**placement) for placement in known.placements],
        tuple((Path(path), reason) for path, reason in known.failures),
    )


@dataclass(slots=True)
class _Index:
    """What is known of decoded images besides their rows, in plain values."""

    kept: list[int]
    placements: list[dict[str, Any]]
    failures: list[tuple[str, str]]


def _decode(path: Path, *, preprocessing: Preprocessing, max_pixels: int) -> MadeRow | str:
    """An image's row, or why there is none."""
    try:
        data = read_limited(path, _MAX_FILE_BYTES)
        return make_row(data, preprocessing, max_pixels=max_pixels, crop_jpeg=crop_jpeg)
    except ServiceError as error:
        return str(error)
    except FileTooLarge as error:
        return f"it has {error.size} bytes; the most is {_MAX_FILE_BYTES}."
    except OSError as error:
        return f"it can't be read: {error.strerror}."
    except MemoryError:
        return "there is too little memory to decode it."


def split(rows: Rows, *, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part images into those for training and those for validation, class by class.

    Args:
        rows: what there is.
        share: of the validation images, between 0 and 1.
        seed: of the choice.

    Returns:
        The positions of both, ascending. Of a class with two images or more both parts have at least one.

    Raises:
        DataSetError: a part would be empty.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(rows.classes == index) for index in np.unique(rows.classes)] if len(rows.classes) else []
    training: list[NDArray[np.int64]] = []
    validation: list[NDArray[np.int64]] = []
    for group in groups or [np.arange(len(rows.rows))]:
        shuffled = rng.permutation(group)
        count = min(max(round(share * len(group)), 1), len(group) - 1)
        validation.append(shuffled[:count])
        training.append(shuffled[count:])
    parts = np.sort(np.concatenate(training)), np.sort(np.concatenate(validation))
    if not len(parts[1]):
        raise DataSetError(
            "No images are left for validation: every class has just one. Add images, or give validation data."
        )
    return parts


def named(paths: Sequence[tuple[Path, str]]) -> list[str]:
    """Lines that list unreadable images with their reasons, the first few of them."""
    lines = [f"{path}: {reason}" for path, reason in paths[:MAX_NAMED]]
    return [*lines, f"and {len(paths) - MAX_NAMED} more"] if len(paths) > MAX_NAMED else lines


def _hint(children: Sequence[Path]) -> str:
    """What to do if this looks like photos with boxes."""
    annotated = any(child.suffix in (".json", ".xml") or child.name.lower() == "annotations" for child in children)
    return " For photos whose objects have boxes, choose --task detection." if annotated else ""


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(child for child in directory.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise DataSetError(f"{directory} is no directory that can be read.") from error


def _images(directory: Path) -> list[Path]:
    """All images below a directory in a fixed order; hidden ones don't count."""
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise DataSetError(f"{error.filename} can't be read: {error.strerror}.") from error

    for place, folders, files in os.walk(directory, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(place) / name for name in sorted(files) if not name.startswith("."))
        found += filter(_is_image, paths)
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or _leads_nowhere(path))


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _folders(names: Sequence[str]) -> str:
    return f"folder {names[0]}" if len(names) == 1 else f"folders {_some(names)}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"
