from itertools import pairwise

import numpy as np
import pytest

from condconv_serve.runtime.lowering.native.memory import ALIGNMENT, Lifetime, place

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("seed", range(20))
def test_values_that_are_needed_at_the_same_time_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lifetimes = []
    for _ in range(30):
        first, size = int(rng.integers(0, 40)), int(rng.integers(1, 2000))
        lifetimes.append(Lifetime(size, first, first + int(rng.integers(0, 10))))
    offsets, total = place(lifetimes)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for step in range(50):
        alive = sorted(
            (offset, offset + one.size)
            for offset, one in zip(offsets, lifetimes, strict=True)
            if one.first <= step <= one.last
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(alive))
        assert all(end <= total for _, end in alive)


def test_a_chain_needs_two_places() -> None:
    chain = [Lifetime(64, step, step + 1) for step in range(10)]
    assert place(chain)[1] == 128


def test_nothing_needs_nothing() -> None:
    assert place([]) == ([], 0)
