"""Folders of labelled images, one per class, and which class of a model each one is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from condconv_serve.domain import Label, readable
from condconv_serve.errors import DataSetError
from condconv_serve.imaging.formats import IMAGE_SUFFIXES
from condconv_serve.inputs.folders import scan

MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Images on disk with the indexes of their classes.

    Attributes:
        files: each image and its class.
        skipped: folders that are no class of the model.
        notes: what was left out, as sentences.
    """

    files: tuple[tuple[Path, int], ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def find_classes(directory: Path, labels: Sequence[Label], *, skip_unknown: bool) -> LabelledFiles:
    """Find the images of a data set whose folders are called like a model's classes.

    A folder is called by a class's label (`giant panda`, `giant_panda`, or the first of several names), its WordNet id
    (`n02510455`) or its index (`388`).

    Args:
        directory: holds a folder per class; folders below those belong to the class.
        labels: of the model.
        skip_unknown: whether folders that are no class are left out rather than refused.

    Raises:
        DataSetError: there is no such directory, no image of any class, or a folder that is no class or may be two.
    """
    folders = _folders(directory)
    names = _Names(labels)
    known: list[tuple[Path, int]] = []
    unknown: list[str] = []
    for folder in folders:
        found = names.find(readable(folder.name))
        if len(found) > 1:
            raise DataSetError(
                f"{readable(folder)}: several classes are called so ({', '.join(map(str, found))}). Call the folder by "
                "the index or the WordNet id."
            )
        if found:
            known.append((folder, found[0]))
        else:
            unknown.append(readable(folder.name))
    if not known or (unknown and not skip_unknown):
        raise DataSetError(_about_unknown(directory, unknown, len(folders), names))
    notes = []
    files: list[tuple[Path, int]] = []
    for folder, index in known:
        content = scan(folder)
        files += [(file, index) for file in content.images]
        if left_out := content.describe():
            notes.append(f"{readable(folder)}: left out: {left_out}.")
        elif not content.images:
            notes.append(f"{readable(folder)} is empty.")
    if not files:
        raise DataSetError(f"{directory}: no image in any of its {len(known)} class folders.")
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        notes.append(f"{directory}: left out: {_count(len(unknown), 'folder')} that {verb} no class: {_some(unknown)}.")
    if loose := sum(child.suffix.lower() in IMAGE_SUFFIXES for child in directory.iterdir() if child.is_file()):
        notes.append(f"{directory}: left out: {_count(loose, 'image')} beside the folders.")
    return LabelledFiles(tuple(files), tuple(unknown), tuple(notes))


def _folders(directory: Path) -> list[Path]:
    try:
        children = sorted(child for child in directory.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise DataSetError(f"{directory} is no folder that can be read: {error.strerror}.") from error
    folders = [child for child in children if child.is_dir()]
    if not folders:
        loose = len(scan(directory).images)
        found = f"but {_count(loose, 'image')} of no class" if loose else "and no image"
        raise DataSetError(f"{directory} holds no folder, {found}. An evaluation needs a folder of images per class.")
    return folders


class _Names:
    """Finds classes by what folders are called."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self.labels = labels
        self._exact: dict[str, list[int]] = {}
        self._loose: dict[str, list[int]] = {}
        for label in labels:
            for name in filter(None, (label.label, label.synset)):
                self._exact.setdefault(name, []).append(label.index)
            # ImageNet's labels are several names in a row, the best known one first.
            for name in {_plain(label.label), _plain(label.label.partition(",")[0])}:
                self._loose.setdefault(name, []).append(label.index)

    def find(self, name: str) -> list[int]:
        """Indexes of the classes that a name stands for."""
        if found := self._exact.get(name) or self._loose.get(_plain(name)):
            return found
        if name.isascii() and name.isdigit() and int(name) < len(self.labels):
            return [int(name)]
        return []

    def like(self, name: str) -> str | None:
        """The label that is most like a name, if any is."""
        near = get_close_matches(_plain(name), self._loose, n=1)
        return self.labels[self._loose[near[0]][0]].label if near else None


def _about_unknown(directory: Path, unknown: Sequence[str], total: int, names: _Names) -> str:
    shown = [f"{name} (is it {near!r}?)" if (near := names.like(name)) else name for name in unknown[:MAX_NAMED]]
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    examples = ", ".join(label.label for label in names.labels[:3])
    advice = "" if len(unknown) == total else " --skip-unknown leaves such folders out."
    return (
        f"{directory}: {len(unknown)} of {_count(total, 'folder')} are no class of the model: "
        f"{', '.join(shown)}{more}. Call a folder by a class's label (such as {examples}), its WordNet id or its "
        f"index.{advice}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
