"""Questions on several threads."""

import threading
import time

import pytest

from condconv_serve.jobs.parallel import in_parallel


def test_results_do_not_wait_for_items_that_are_slow_in_coming():
    """A run that goes on may pass over a million photos before it finds the next one to ask about."""
    done, taken = threading.Semaphore(0), []

    def items():
        for number in range(16):
            taken.append(number)
            yield number
            done.acquire(timeout=10)
            time.sleep(0.01)

    results = in_parallel(lambda item: done.release(), items(), threads=8)
    next(results)
    assert len(taken) < 8
    assert len(list(results)) == 15


def test_what_work_raises_is_raised():
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(in_parallel(work, range(100), threads=4))
