"""Ablation: one image computed again with different routing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from condconv_serve.domain.images import Row
from condconv_serve.domain.model import ServedModel
from condconv_serve.domain.routing import RoutingOverrides
from condconv_serve.domain.tensors import Tensors

ALL_BLOCKS = "all"
"""In place of a block's name: every block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingChange:
    """A change to one block's routing, of exactly one kind.

    Attributes:
        block: its name, or `ALL_BLOCKS`.
        off: experts whose weight becomes 0.
        uniform: whether every expert gets the mean of the weights that the block has for this image.
        weights: a weight, 0 to 1, for each expert; None leaves the model's own.
    """

    block: str
    off: tuple[int, ...] | None = None
    uniform: bool = False
    weights: tuple[float | None, ...] | None = None

    @property
    def name(self) -> str:
        """What it does, in words."""
        if self.uniform:
            return f"{self.block} uniform"
        if self.weights is not None:
            return f"{self.block} with given weights"
        return f"{self.block} without expert {' and '.join(map(str, self.off or ()))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One routing to try: changes to some blocks, in this order. All other blocks compute their own routing."""

    changes: tuple[RoutingChange, ...]
    name: str = ""


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

    async def check(self) -> None:
        """Refuse now if an ablation would be refused.

        Raises:
            AblationBusy: too many are waiting already.
        """
        ...

    def admit(self) -> AbstractAsyncContextManager[None]:
        """Take a place until the block ends: from before the image is decoded until the ablation is done.

        Errors are those of `check`.
        """
        ...

    async def ablate(self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float) -> Ablated:
        """Compute a row with different routing, by `deadline` (monotonic clock, seconds). Cancelling stops it."""
        ...
