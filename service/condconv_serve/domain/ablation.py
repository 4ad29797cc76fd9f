"""Ablation: one image computed with other routings than its own."""

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
        """Compute `V + 1` rows, the first of which is unchanged, with the weights used; None if `stopped` says so."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablated:
    """What an ablation found, and how long it waited and took (seconds).

    `output` is of the variants and, before them, of the image as it is.
    """

    output: Tensors
    queue: float
    inference: float


class Ablator(Protocol):
    """Computes ablations beside the ordinary traffic."""

    def check(self) -> None:
        """Say whether an ablation would be taken now.

        Raises:
            AblationBusy: as many as allowed are waiting already.
        """
        ...

    def admit(self) -> AbstractContextManager[None]:
        """Take a place, from before the image is decoded until the ablation is done. Errors are those of `check`."""
        ...

    async def ablate(self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float) -> Ablated:
        """Compute a row with other routings, by `deadline` on the monotonic clock. Cancelling stops it."""
        ...
