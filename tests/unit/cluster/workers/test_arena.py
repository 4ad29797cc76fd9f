"""Slots of shared memory."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from condconv_serve.cluster.workers.arena import Arena, OwnArena, Placed, answer_bytes, layout_of, slot_size

TENSORS = {
    "logits": np.linspace(-1, 1, 1000, dtype=np.float32),
    "routing": np.full((9, 4), 0.25, np.float32),
    "flag": np.array(True),
}
ROW = Placed("|u1", (8, 8, 3), 0)


def shared(*, slot_bytes: int = 8192, slots: int = 4) -> tuple[OwnArena, Arena]:
    """An arena as its front sees it, and as the engine process does."""
    own = OwnArena(slot_bytes=slot_bytes, slots=slots)
    return own, Arena(own.file, slot_bytes=slot_bytes, slots=slots)


def test_both_sides_see_the_same_memory() -> None:
    own, other = shared()
    slot = own.take()
    assert slot is not None
    own.array(slot, ROW)[...] = np.arange(192).reshape(8, 8, 3)
    row = other.array(slot, ROW)
    assert row.sum() == np.arange(192).sum()
    layout = other.write(slot, TENSORS)
    assert layout is not None
    found = own.read(slot, layout)
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    other.array(slot, ROW)[...] = 0
    np.testing.assert_array_equal(found["logits"], TENSORS["logits"])  # a copy


def test_slots_do_not_overlap() -> None:
    own, other = shared(slot_bytes=4096)
    whole = Placed("|u1", (4096,), 0)
    for slot in range(4):
        own.array(slot, whole)[...] = slot
    assert [set(other.array(slot, whole)) for slot in range(4)] == [{0}, {1}, {2}, {3}]


def test_what_came_back_last_is_taken_first_and_nothing_is_taken_twice() -> None:
    own, _ = shared()
    taken = [own.take() for _ in range(4)]
    assert sorted(slot for slot in taken if slot is not None) == [0, 1, 2, 3]
    assert own.take() is None
    own.give_back([2])
    own.give_back([1])
    assert [own.take(), own.take(), own.take()] == [1, 2, None]


def test_an_answer_that_does_not_fit_is_not_written() -> None:
    own, other = shared(slot_bytes=4096)
    own.array(0, ROW)[...] = 7
    assert other.write(0, {"large": np.zeros(1025, np.float32)}) is None
    assert own.array(0, ROW).min() == 7


def occupied(arena: OwnArena) -> int:
    """How many of an arena's slots have memory, each of one page."""
    return os.fstat(arena.file).st_blocks * 512 // mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes a file's memory away")
def test_memory_of_slots_that_nobody_took_for_a_while_goes_back_to_the_system() -> None:
    own, other = shared(slot_bytes=mmap.PAGESIZE, slots=10)
    whole = Placed("|u1", (mmap.PAGESIZE,), 0)

    def burst(size: int) -> list[int]:
        taken = [slot for slot in (own.take() for _ in range(size)) if slot is not None]
        for slot in taken:
            own.array(slot, whole)[...] = 1 + slot
        return taken

    own.give_back(burst(8))
    kept = burst(2)
    own.trim(mmap.PAGESIZE * 10)
    assert occupied(own) == 8, "the burst was just now"
    own.give_back(burst(1))
    own.trim(mmap.PAGESIZE * 4)
    assert occupied(own) == 4, "no more at once"
    own.trim(mmap.PAGESIZE * 10)
    assert occupied(own) == 2
    for slot in kept:
        assert set(other.array(slot, whole)) == {1 + slot}
    own.give_back(kept)
    assert sorted(burst(10)) == list(range(10))
    assert all(set(other.array(slot, whole)) == {1 + slot} for slot in range(10))


@pytest.mark.parametrize(
    ("slot", "placed"),
    [
        (4, ROW),
        (-1, ROW),
        (0, Placed("|u1", (8193,), 0)),
        (0, Placed("|u1", (1,), 8192)),
        (0, Placed("|u1", (1,), -1)),
        (0, Placed("|O", (1,), 0)),
        (0, Placed("<f8", (2**62, 8), 0)),
    ],
)
def test_nothing_outside_of_a_slot_is_reached(slot: int, placed: Placed) -> None:
    _, other = shared()
    with pytest.raises(ValueError, match="can't hold"):
        other.array(slot, placed)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux seals files")
def test_a_file_that_is_too_short_is_refused_and_cannot_be_made_shorter() -> None:
    own = OwnArena(slot_bytes=4096, slots=2)
    with pytest.raises(ValueError, match="shorter"):
        Arena(own.file, slot_bytes=4096, slots=3)
    with pytest.raises(PermissionError):  # it would kill whoever reads beyond its end
        os.ftruncate(own.file, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts its files so")
def test_an_arena_that_cannot_be_made_leaves_no_open_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no memory")

    gc.collect()  # else it may close files of other tests meanwhile
    before = os.listdir("/proc/self/fd")
    for broken in ("os.ftruncate", "mmap.mmap"):
        monkeypatch.setattr(broken, fail)
        with pytest.raises(OSError, match="no memory"):
            OwnArena(slot_bytes=4096, slots=2)
        monkeypatch.undo()
    assert os.listdir("/proc/self/fd") == before


def test_rows_stay_readable_when_their_owner_was_killed_while_it_wrote() -> None:
    code = """
import os, signal, sys
from condconv_serve.cluster.workers.arena import Arena, Placed
arena = Arena(int(sys.argv[1]), slot_bytes=8192, slots=4)
arena.array(1, Placed("|u1", (4096,), 0))[...] = 5
os.kill(os.getpid(), signal.SIGKILL)
"""
    own, other = shared()
    ended = subprocess.run([sys.executable, "-c", code, str(own.file)], pass_fds=[own.file], check=False)
    assert ended.returncode == -9
    own.close()
    row = other.array(1, Placed("|u1", (8192,), 0))
    del own, other  # a batch may still read it
    assert row.sum() == 5 * 4096


def test_sizes_of_slots() -> None:
    assert [slot_size(n) for n in (1, 4096, 4097, 150_528)] == [4096, 4096, 8192, 262_144]
    expected = layout_of({name: TENSORS[name] for name in ("logits", "routing")})[1]
    assert answer_bytes({"logits": ((1000,), "float32"), "routing": ((9, 4), "float32")}) == expected
