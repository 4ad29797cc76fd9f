"""Tasks: they say what a network's named tensors mean, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from condconv_serve.domain import ModelInfo, RowAnswer

Answer_co = TypeVar("Answer_co", covariant=True)


class Task(Protocol[Answer_co]):
    """One task with the parameters of one request."""

    def check(self, model: ModelInfo) -> None:
        """Refuse parameters that don't fit this model, before any work is done.

        Raises:
            InvalidParameter: says what is allowed.
        """
        ...

    def answer(self, row: RowAnswer, model: ModelInfo) -> Answer_co:
        """Turn the tensors of one row into an answer."""
        ...


@runtime_checkable
class FindsObjects(Protocol):
    """A task whose answers may hold objects that were found in an image. They are counted as they are returned."""

    def scores_in(self, answer: Any) -> Sequence[float] | None:
        """The score of each object of an answer; None if that answer doesn't say what was found."""
        ...
