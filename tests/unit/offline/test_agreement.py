import numpy as np
import pytest

from condconv_serve.domain import LOGITS
from condconv_serve.offline.agreement import compare


class Says:
    """Answers with the logits that a row's first pixel points at."""

    def __init__(self, logits):
        self.logits = np.asarray(logits, np.float32)

    def __call__(self, rows, stream=0):
        return {LOGITS: self.logits[rows[:, 0, 0, 0]]}

    def close(self):
        pass


ROWS = [np.full((4, 4, 3), i, np.uint8) for i in range(3)]


def test_differences_are_of_probabilities():
    half = np.log([[1, 1], [1, 3], [3, 1]])
    other = np.log([[1, 1], [3, 1], [1, 1]])
    found = compare(Says(other), Says(half), ROWS, batch_size=2)
    assert found.rows == 3
    assert found.top1 == pytest.approx(2 / 3)
    assert found.largest_difference == pytest.approx(0.5, abs=1e-6)
    assert found.mean_difference == pytest.approx((0 + 0.5 + 0.25) / 3, abs=1e-6)


def test_equal_engines_agree():
    engine = Says(np.random.default_rng(0).normal(size=(3, 10)))
    found = compare(engine, engine, ROWS)
    assert (found.top1, found.largest_difference, found.mean_difference) == (1, 0, 0)


def test_large_logits_do_not_overflow():
    found = compare(Says([[1000, 0]] * 3), Says([[0, 1000]] * 3), ROWS)
    assert (found.top1, found.largest_difference) == (0, 1)
