"""Whatever a model is for: its classes, or the objects that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from condconv_serve.domain import Detection, ModelInfo, RoutedAnswer, RowAnswer
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import Classify
from condconv_serve.tasks.detection import Detect

_TASKS: dict[str, type[Classify | Detect]] = {"classification": Classify, "detection": Detect}


def options_of(task: str) -> tuple[str, ...]:
    """The names of a task's options."""
    return tuple(field.name for field in fields(_TASKS[task]))


@dataclass(frozen=True, slots=True)
class ByTask:
    """The task of the model that answers.

    Attributes:
        options: those that were asked for, by name, of whichever task.
    """

    options: Mapping[str, Any]

    def check(self, model: ModelInfo) -> None:
        """Refuse options of another task, and impossible ones.

        Raises:
            InvalidParameter: says what is allowed.
        """
        known = options_of(model.task)
        if others := [name for name in self.options if name not in known]:
            raise InvalidParameter(
                f"{', '.join(others)}: not for {model.name}, a model for {model.task}; it takes {', '.join(known)}."
            )
        self._task(model).check(model)

    def answer(self, row: RowAnswer, model: ModelInfo) -> RoutedAnswer:
        """The classes or the objects, the routing, and where the time went."""
        return self._task(model).answer(row, model)

    def scores_in(self, answer: RoutedAnswer) -> list[float] | None:
        """The score of each object of a detector's answer."""
        return [found.score for found in answer.objects] if isinstance(answer, Detection) else None

    def _task(self, model: ModelInfo) -> Classify | Detect:
        return _TASKS[model.task](**self.options)


@dataclass(frozen=True, slots=True)
class Routed:
    """What an image's routing is shown with: its best class, or its objects."""

    def check(self, model: ModelInfo) -> None:
        """Take every model."""

    def answer(self, row: RowAnswer, model: ModelInfo) -> RoutedAnswer:
        """The class or the objects, the routing, and where the time went."""
        task: Classify | Detect = Detect() if model.task == "detection" else Classify(1)
        return task.answer(row, model)
