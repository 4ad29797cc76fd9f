"""What waits until a deadline hears of that deadline, and of nothing else."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from condconv_serve.deadline import ending_at
from condconv_serve.errors import DeadlineExceeded


async def test_it_ends_at_the_deadline():
    with pytest.raises(DeadlineExceeded):
        async with ending_at(time.monotonic() + 0.01):
            await asyncio.sleep(60)


@pytest.mark.parametrize("seconds", [60.0, math.inf])
async def test_a_timeout_of_what_it_waits_for_is_passed_on(seconds):
    with pytest.raises(TimeoutError, match="a file system"):
        async with ending_at(time.monotonic() + seconds):
            raise TimeoutError("a file system")
