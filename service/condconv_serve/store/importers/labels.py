"""Names of classes as people have them: JSON, or plain text with one name per line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter, ValidationError

from condconv_serve.domain import Label, can_be_label
from condconv_serve.errors import ImportFailed
from condconv_serve.store.bundle import LABEL_LIST
from condconv_serve.validation import first_message

IMAGENET_CLASSES = 1000
_Number = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]
_labels = TypeAdapter(list[Label | str] | dict[_Number, str | tuple[str, str]])
_SYNSET = re.compile(r"^(n\d{8})[\s:,]+(\S.*)$")


def read_labels_file(file: Path) -> list[Label]:
    """Read a labels file.

    Args:
        file: `.json`, a list of objects with `index`, `label` and perhaps `synset`, or of plain names, or an object
            with a name, or synset and name, by number, as in `{"0": "tench"}`; or any other name, one class per line
            in the order of the logits. Where every line begins with a WordNet id, as in `n01440764 tench`, that is the
            synset.

    Raises:
        ImportFailed: it can't be read, is empty, doesn't name the classes 0, 1, 2, ... in order, or has a name that is
            blank or holds control characters.
    """
    text = read_text(file)
    labels = _from_json(text, file.name) if file.suffix.lower() == ".json" else _from_lines(text, file.name)
    if not labels or [label.index for label in labels] != list(range(len(labels))):
        raise ImportFailed(f"{file.name} must name the classes 0, 1, 2, ... in order.")
    check_names(labels, origin=file.name)
    return labels


def imagenet_labels() -> list[Label]:
    """The classes of ImageNet-1k in the order of the published checkpoints."""
    return LABEL_LIST.validate_json(files(__package__).joinpath("imagenet-1k.json").read_bytes())


def check_labels(labels: Sequence[Label], classes: int, *, origin: str) -> None:
    """Check that there is a label for each class, and that each is one.

    Args:
        labels: what was read.
        classes: how many the weights have.
        origin: where the labels were, for people.

    Raises:
        ImportFailed: there are more or fewer, and names both counts; or a label is blank or holds control characters.
    """
    check_names(labels, origin=origin)
    if len(labels) == classes:
        return
    background = ""
    if classes == IMAGENET_CLASSES + 1:
        background = " They may have a background class first: name that in the file, too."
    raise ImportFailed(
        f"{origin} names {len(labels)} class{'es' * (len(labels) != 1)}, but the weights have {classes}.{background}"
    )


def check_names(labels: Sequence[Label], *, origin: str) -> None:
    """Check that each label is one.

    Raises:
        ImportFailed: some are blank or hold control characters.
    """
    if odd := [str(label.index) for label in labels if not can_be_label(label.label)]:
        raise ImportFailed(
            f"{origin} must name every class, without control characters; not so are: {', '.join(odd[:8])}."
        )


def _from_json(text: str, name: str) -> list[Label]:
    try:
        found = _labels.validate_json(text)
    except ValidationError as error:
        raise ImportFailed(
            f"{name} is no list of labels (index, label, synset) or of names: {first_message(error)}."
        ) from error
    numbered = sorted((int(k), v) for k, v in found.items()) if isinstance(found, dict) else enumerate(found)
    return [_label(index, given) for index, given in numbered]


def _label(index: int, given: Label | str | tuple[str, str]) -> Label:
    if isinstance(given, Label):
        return given
    return Label(index, given) if isinstance(given, str) else Label(index, given[1], given[0])


def _from_lines(text: str, name: str) -> list[Label]:
    lines = [line.strip() for line in StringIO(text.rstrip())]
    if empty := [str(number) for number, line in enumerate(lines, 1) if not line]:
        raise ImportFailed(f"{name} must name a class in every line; empty are: {', '.join(empty[:8])}.")
    synsets = [_SYNSET.match(line) for line in lines]
    return [
        Label(index, match[2], match[1]) if match and all(synsets) else Label(index, line)
        for index, (line, match) in enumerate(zip(lines, synsets, strict=True))
    ]


def read_text(file: Path) -> str:
    """Read a text file, with or without a byte order mark.

    Raises:
        ImportFailed: it is not there, can't be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ImportFailed(f"{file.name} can't be read: {reason}.") from error
