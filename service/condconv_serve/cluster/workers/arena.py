"""Shared memory for rows and their answers: slots of one size, which a front owns and the engine process looks into.

An arena is an anonymous file that both processes map, so it is gone with the last of them. Only pages that somebody has
written cost memory, until the front gives them back. The front alone says which slot is free. It gives a slot to a row,
and the engine process writes the row's answer where the row was. So neither needs a lock, and a front that is killed
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Tensors

_ALIGNMENT = 64
"""Arrays begin at multiples of a cache line."""


class Placed(NamedTuple):
    """Where an array lies in a slot: its dtype as NumPy writes it, its shape, and its first byte."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@functools.lru_cache(maxsize=256)
def _looked_at(placed: Placed) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Its dtype, shape, first byte, and the one after its last. The arrays of a model lie in few places."""
    dtype = np.dtype(placed.dtype)
    return dtype, placed.shape, placed.offset, placed.offset + math.prod(placed.shape) * dtype.itemsize


Layout = tuple[tuple[str, Placed], ...]
"""Where the tensors of an answer lie in a slot, by name."""


def slot_size(needed: int) -> int:
    """Bytes of a slot that holds so many: a power of two, at least a page, so that similar models share an arena."""
    return max(mmap.PAGESIZE, 1 << (needed - 1).bit_length())


def layout_of(tensors: Tensors) -> tuple[Layout, int]:
    """How tensors lie in a slot, and how many bytes that takes."""
    return _layout_of(tuple([(name, values.dtype.str, values.shape) for name, values in tensors.items()]))


@functools.lru_cache(maxsize=256)
def _layout_of(tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> tuple[Layout, int]:
    """The answers of a model are all alike, so they share one layout, which then is sent once for many rows."""
    placed, end = [], 0
    for name, dtype, shape in tensors:
        start = -end % _ALIGNMENT + end
        placed.append((name, Placed(dtype, shape, start)))
        end = start + math.prod(shape) * np.dtype(dtype).itemsize
    return tuple(placed), end


class Arena:
    """Slots of one size, mapped by this process."""

    def __init__(self, file: int, *, slot_bytes: int, slots: int) -> None:
        """Map an arena's file, which may be closed afterwards.

        Raises:
            ValueError: the file is shorter than the slots.
        """
        if os.fstat(file).st_size < slot_bytes * slots:
            raise ValueError("The file of an arena is shorter than its slots.")
        self.slot_bytes = slot_bytes
        self.slots = slots
        # Unmapped when the last array over it has gone: a batch may still read rows of a front that has died.
        self._memory = mmap.mmap(file, slot_bytes * slots)

    def array(self, slot: int, placed: Placed) -> NDArray[Any]:
        """An array in a slot: the memory itself, no copy.

        Raises:
            ValueError: there is no such slot, or the array doesn't fit into it.
        """
        dtype, shape, offset, end = _looked_at(placed)
        if not 0 <= slot < self.slots or offset < 0 or end > self.slot_bytes or dtype.hasobject:
            raise ValueError(f"Slot {slot} can't hold {placed}.")
        return np.ndarray(shape, dtype, self._memory, slot * self.slot_bytes + offset)

    def write(self, slot: int, tensors: Tensors) -> Layout | None:
        """Copy tensors into a slot.

        Returns:
            Where they lie; None if they don't fit. Then nothing was written.
        """
        layout, size = layout_of(tensors)
        if size > self.slot_bytes:
            return None
        for name, placed in layout:
            self.array(slot, placed)[...] = tensors[name]
        return layout

    def read(self, slot: int, layout: Layout) -> dict[str, NDArray[Any]]:
        """Copies of the tensors in a slot."""
        return {name: self.array(slot, placed).copy() for name, placed in layout}


class OwnArena(Arena):
    """An arena that this process owns: it knows which slots are free."""

    def __init__(self, *, slot_bytes: int, slots: int) -> None:
        """Make an arena. Its file has no name, so nobody else can open it.

        Args:
            slot_bytes: of each slot, see `slot_size`.
            slots: how many.

        Raises:
            OSError: there is too little memory, or too many files are open.
        """
        self.file = _anonymous_file(slot_bytes * slots)
        try:
            super().__init__(self.file, slot_bytes=slot_bytes, slots=slots)
        except BaseException:
            self.close()
            raise
        # The last one that came back is taken first: its pages are there already, and perhaps still in the cache.
        self._free = list(range(slots - 1, -1, -1))
        self._fewest_free = slots
        self._written = set[int]()

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take(self) -> int | None:
        """A free slot; None if there is none."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._fewest_free = min(self._fewest_free, len(self._free))
        self._written.add(slot)
        return slot

    def give_back(self, slots: Sequence[int]) -> None:
        """Nobody uses these slots any more."""
        self._free.extend(slots)

    def trim(self, most: int) -> None:
        """Give the memory of slots that nobody has taken since the last call back to the system, if it can be.

        Args:
            most: how many bytes at once, since that takes time.
        """
        idle = self._free[: self._fewest_free]  # all others were taken and came back
        self._fewest_free = len(self._free)
        if not hasattr(mmap, "MADV_REMOVE"):
            return
        for slot in [slot for slot in idle if slot in self._written][: most // self.slot_bytes]:
            with contextlib.suppress(OSError):  # not every system can
                self._memory.madvise(mmap.MADV_REMOVE, slot * self.slot_bytes, self.slot_bytes)
            self._written.discard(slot)

    def close(self) -> None:
        """Close the file. What is mapped stays so until the last array over it has gone."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def answer_bytes(outputs: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Bytes of a slot that an answer takes, from its outputs' shapes and dtypes by name."""
    end = 0
    for shape, dtype in outputs.values():
        end = -end % _ALIGNMENT + end + math.prod(shape) * np.dtype(dtype).itemsize
    return end


def _anonymous_file(size: int) -> int:
    if sys.platform == "linux":
        import fcntl

        file = os.memfd_create("condconv-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, size)
            # Who reads beyond the end of a file that has become shorter is killed.
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(file)
            raise
        return file
    with tempfile.TemporaryFile() as unnamed:
        os.ftruncate(unnamed.fileno(), size)
        return os.dup(unnamed.fileno())
