"""What a job's output is made of: its columns, and a row of them for each photo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from condconv_serve.domain import Detection, Prediction, RoutingLayout, readable
from condconv_serve.jobs.journal import Entry

if TYPE_CHECKING:
    from condconv_serve.tasks.features import Embedding


class Kind(StrEnum):
    """What a column holds, as the documentation calls it."""

    TEXT = "text"
    WHOLE = "int64"
    NUMBER = "float64"
    CLASSES = "list of {index, label, synset, probability}"
    OBJECTS = "list of {index, label, synset, score, xmin, ymin, xmax, ymax}"
    WEIGHTS = "a list of float32 for each block"
    VECTOR = "list of float32"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name and what it holds."""

    name: str
    kind: Kind


OF_EVERY_PHOTO = (
    Column("path", Kind.TEXT),
    Column("size", Kind.WHOLE),
    Column("mtime_ns", Kind.WHOLE),
    Column("model", Kind.TEXT),
    Column("version", Kind.TEXT),
    Column("error", Kind.TEXT),
    Column("error_detail", Kind.TEXT),
)
OF_CLASSES = (Column("label", Kind.TEXT), Column("probability", Kind.NUMBER), Column("classes", Kind.CLASSES))
OF_OBJECTS = (Column("width", Kind.WHOLE), Column("height", Kind.WHOLE), Column("detections", Kind.OBJECTS))
OF_FEATURES = (Column("features", Kind.VECTOR),)
LOGITS = Column("logits", Kind.VECTOR)
ROUTING = Column("routing", Kind.WEIGHTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of an output.

    Attributes:
        columns: those of every photo first.
        layout: of the routing, if that is a column.
        model: the name of what answers.
        version: its version.
        about: all that is known about how the rows were made, by name.
    """

    columns: tuple[Column, ...]
    layout: RoutingLayout
    model: str
    version: str
    about: Mapping[str, Any]

    def row(self, entry: Entry) -> dict[str, Any]:
        """A photo's row: a value or None for each column."""
        common = (
            readable(entry.photo.path),
            entry.photo.size,
            entry.photo.mtime_ns,
            self.model,
            self.version,
            entry.slug,
            entry.detail,
        )
        own = (entry.answer.get(column.name) for column in self.columns[len(OF_EVERY_PHOTO) :])
        return dict(zip((column.name for column in self.columns), (*common, *own), strict=True))

    def flat(self, entry: Entry) -> dict[str, Any]:
        """The row for files whose cells hold text: lists are JSON."""
        return {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
            for name, value in self.row(entry).items()
        }


def answer_of(found: Prediction | Detection | Embedding, columns: tuple[Column, ...]) -> dict[str, Any]:
    """An answer's own columns by name, of those that the output has."""
    values: dict[str, Any]
    if isinstance(found, Prediction):
        classes = [
            {"index": one.index, "label": one.label, "synset": one.synset, "probability": one.probability}
            for one in found.classes
        ]
        values = {"label": found.best.label, "probability": found.best.probability, "classes": classes}
    elif isinstance(found, Detection):
        detections = [
            {
                "index": one.index,
                "label": one.label,
                "synset": one.synset,
                "score": one.score,
                "xmin": one.box.xmin,
                "ymin": one.box.ymin,
                "xmax": one.box.xmax,
                "ymax": one.box.ymax,
            }
            for one in found.objects
        ]
        values = {"width": found.width, "height": found.height, "detections": detections}
    else:
        values = {"features": found.features.tolist()}
        if found.logits is not None:
            values["logits"] = found.logits.tolist()
    if ROUTING in columns and isinstance(found, Prediction | Detection):
        values["routing"] = found.routing.layout.lists(found.routing.weights)
    return values
