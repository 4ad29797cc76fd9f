"""Gives the values of a program their places in scratch memory, so that little of it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes of a cache line. Offsets are multiples of it."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a value is needed: from one step to another, both included."""

    size: int
    first: int
    last: int


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Find an offset for each value, so that no two that are needed at the same time overlap.

    The largest value comes first, and each takes the lowest place that is free as long as it is needed.

    Returns:
        The offsets, and the bytes that are needed in all.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    for number in sorted(range(len(lifetimes)), key=lambda n: -lifetimes[n].size):
        one = lifetimes[number]
        size = _aligned(one.size)
        busy = sorted(
            (offsets[other], offsets[other] + _aligned(lifetimes[other].size))
            for other in placed
            if lifetimes[other].first <= one.last and one.first <= lifetimes[other].last
        )
        at = 0
        for start, end in busy:
            if at + size <= start:
                break
            at = max(at, end)
        offsets[number] = at
        placed.append(number)
    ends = (offset + _aligned(one.size) for offset, one in zip(offsets, lifetimes, strict=True))
    return offsets, max(ends, default=0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
