"""Ablation: one image computed again with different routing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from condconv_serve.domain.images import Row
from condconv_serve.domain.model import ServedModel
from condconv_serve.domain.routing import RoutingOverrides
from condconv_serve.domain.tensors import Tensors


class Ablation(Protocol):
    """Computes one image with many routings; not thread-safe."""

    def __call__(self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool]) -> Tensors | None:
        """Compute `V + 1` rows, the unchanged one first, and the weights used. None if `stopped` returns true."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablated:
    """What an ablation found, and how long it waited and took (seconds).

    `output` holds the unchanged image first, then the variants.
    """

    output: Tensors
    queue: float
    inference: float


class Ablator(Protocol):
    """Computes ablations beside the ordinary traffic."""

    def check(self) -> None:
        """Refuse now if an ablation would be refused.

        Raises:
            AblationBusy: too many are waiting already.
        """
        ...

    def admit(self) -> AbstractContextManager[None]:
        """Take a place until the block ends: from before the image is decoded until the ablation is done.

        Errors are those of `check`.
        """
        ...

    async def ablate(self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float) -> Ablated:
        """Compute a row with different routing, by `deadline` (monotonic clock, seconds). Cancelling stops it."""
        ...
