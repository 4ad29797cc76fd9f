"""Prints the results of images as they come: for people, as one JSON document, or as a line of JSON each.

What a result is, classes or features, the functions say that show it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import typer

from condconv_serve.cli.common import command_line
from condconv_serve.cli.output import note, print_failure, to_json, write_json
from condconv_serve.domain import (
    ClassifiedImage,
    Detection,
    EngineDescription,
    ImageResult,
    RoutedAnswer,
    RoutingLayout,
    ServedModel,
)
from condconv_serve.routing.provenance import Provenance

if TYPE_CHECKING:
    from pydantic import BaseModel

    from condconv_serve.tasks.features import Embedding

Answer = TypeVar("Answer")
Answer_contra = TypeVar("Answer_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringModel:
    """Which model answers, here or on a server.

    Attributes:
        name: its name.
        version: its version.
        task: what it is for.
        computed_by: what computes it.
        routing: its CondConv blocks.
        weights_sha256: the checksum of its weights; empty if it has none.
    """

    name: str
    version: str
    task: str
    computed_by: EngineDescription
    routing: RoutingLayout
    weights_sha256: str

    @classmethod
    def of(cls, model: ServedModel) -> AnsweringModel:
        """A model that was loaded here."""
        weights = model.info.manifest.files.get("weights.safetensors")
        return cls(
            name=model.name,
            version=model.version,
            task=model.info.task,
            computed_by=model.computed_by,
            routing=model.info.routing,
            weights_sha256=weights.sha256 if weights else "",
        )

    def makes(self, *, interrupted: bool) -> Provenance:
        """Say what makes a file of its answers: this command, right now."""
        command = f"{command_line()} # interrupted" if interrupted else command_line()
        return Provenance.now(self.name, self.version, self.weights_sha256, command)


class Results(Protocol[Answer_contra]):
    """Prints results as they come."""

    def started(self, model: AnsweringModel) -> None:
        """It is known which model answers."""

    def result(self, result: ImageResult[Answer_contra]) -> None:
        """Print a result: an answer, or the image's own error."""

    def ended(self, *, interrupted: bool) -> None:
        """Print what comes after the last result; nothing if not even the model was loaded."""


class TextResults(Generic[Answer]):
    """For people: on stderr what answers and what failed, on stdout the answers."""

    def __init__(self, show: Callable[[str, Answer], None]) -> None:
        """Print each answer with `show`, which gets the image's name and the answer."""
        self._show = show

    def started(self, model: AnsweringModel) -> None:
        """Say which model answers, and what computes it."""
        note(f"{model.name}/{model.version}, computed by {model.computed_by}")

    def result(self, result: ImageResult[Answer]) -> None:
        """Print an answer or a failure."""
        name = result.filename or result.id
        if result.prediction is None:
            print_failure(name, result.error)
        else:
            self._show(name, result.prediction)

    def ended(self, *, interrupted: bool) -> None:
        """Nothing: each answer stands for itself."""


class JsonResults(Generic[Answer]):
    """One document in the shape of the HTTP answer. It is whole in the end, and after Ctrl-C."""

    def __init__(self, entry: Callable[[ImageResult[Answer]], dict[str, Any]]) -> None:
        """Print for each image what `entry` makes of its result."""
        self._entry = entry
        self._begun = False
        self._count = 0

    def started(self, model: AnsweringModel) -> None:
        """Print everything but the results."""
        self._begun, self._model = True, model
        head = to_json({"model": name_of(model), "computed_by": asdict(model.computed_by)})
        write_json(head.removesuffix("\n}") + ',\n  "predictions": [')

    def result(self, result: ImageResult[Answer]) -> None:
        """Print an entry."""
        entry = textwrap.indent(to_json(self._entry(result)), "    ")
        write_json((",\n" if self._count else "\n") + entry)
        self._count += 1

    def ended(self, *, interrupted: bool) -> None:
        """Close the document."""
        if self._begun:
            write_json(
                ("\n  ]" if self._count else "]") + (',\n  "interrupted": true' if interrupted else "") + "\n}\n"
            )


class JsonLines(Generic[Answer]):
    """An object on a line of its own for each image."""

    def __init__(self, entry: Callable[[ImageResult[Answer]], dict[str, Any]]) -> None:
        """Print for each image what `entry` makes of its result."""
        self._entry = entry

    def started(self, model: AnsweringModel) -> None:
        """Remember the model: each line names it."""
        self._model = model

    def result(self, result: ImageResult[Answer]) -> None:
        """Print a line."""
        line = {"model": name_of(self._model), **self._entry(result)}
        write_json(to_json(line, indent=None) + "\n")

    def ended(self, *, interrupted: bool) -> None:
        """Nothing: each line stands for itself."""


def name_of(model: AnsweringModel) -> dict[str, str]:
    """Name and version, as answers have them."""
    return {"name": model.name, "version": model.version}


def as_json(
    entry: Callable[[ImageResult[Answer]], dict[str, Any]], *, document: bool, lines: bool
) -> Results[Answer] | None:
    """What prints JSON, as one document or as lines; None if neither is wanted."""
    if document and lines:
        raise typer.BadParameter("print one document or a line per image, not both.", param_hint="--json, --json-lines")
    if lines:
        return JsonLines(entry)
    return JsonResults(entry) if document else None


def classes_entry(result: ClassifiedImage, *, routing: bool) -> dict[str, Any]:
    """Classes, with or without routing weights, as the HTTP answer has them."""
    from condconv_serve.fronts.native.schemas import prediction_body

    return _dumped(prediction_body(result, routing=routing))


def detections_entry(result: ImageResult[Detection], *, routing: bool) -> dict[str, Any]:
    """Objects, with or without routing weights, as the HTTP answer has them."""
    from condconv_serve.fronts.native.detection_schemas import detection_body

    return _dumped(detection_body(result, routing=routing))


def routing_entry(result: ImageResult[RoutedAnswer]) -> dict[str, Any]:
    """Classes or objects with routing weights, as the HTTP answer has them."""
    found = result.prediction
    if isinstance(found, Detection):
        return detections_entry(ImageResult(id=result.id, filename=result.filename, prediction=found), routing=True)
    classified = ImageResult(id=result.id, filename=result.filename, prediction=found, error=result.error)
    return classes_entry(classified, routing=True)


def features_entry(result: ImageResult[Embedding]) -> dict[str, Any]:
    """Features, as the HTTP answer has them."""
    from condconv_serve.fronts.native.feature_schemas import features_body

    return _dumped(features_body(result))


def _dumped(body: BaseModel) -> dict[str, Any]:
    entry: dict[str, Any] = body.model_dump(mode="json", exclude_none=True)
    return entry
