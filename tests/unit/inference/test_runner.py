"""From a batch's tensors to those of each row."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import Tensors
from condconv_serve.errors import InferenceFailed
from condconv_serve.inference.runner import BatchRunner, batch_of, finite_rows
from condconv_serve.inference.streams import StreamPool
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FunctionEngine, model_info, served_model


def logits(row: Tensors | InferenceFailed) -> object:
    assert not isinstance(row, InferenceFailed)
    return row["logits"].tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_with_numbers_that_are_not_finite_is_an_error_and_the_others_are_not(wrong: float) -> None:
    tensors = {"logits": np.arange(6, dtype=np.float32).reshape(3, 2), "routing": np.ones((3, 2, 2), np.float32)}
    assert [logits(row) for row in finite_rows(tensors)] == [[0, 1], [2, 3], [4, 5]]
    tensors["routing"][0, 1, 1] = wrong
    tensors["logits"][2, 0] = wrong
    first, second, third = finite_rows(tensors)
    assert logits(second) == [2, 3]
    assert isinstance(first, InferenceFailed)
    assert isinstance(third, InferenceFailed)
    assert first is not third, "each sender's own"
    assert first.slug == "inference_failed"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_finite_numbers_are_finite(dtype: type) -> None:
    values: np.ndarray[Any, Any] = np.full((2, 1000), np.finfo(np.float32).max if dtype is np.float32 else 255, dtype)
    assert not any(isinstance(row, InferenceFailed) for row in finite_rows({"logits": values}))


def test_a_batch_holds_its_rows_whatever_they_are() -> None:
    random = np.random.default_rng(0)
    alike = [random.integers(0, 256, (5, 5, 3), np.uint8) for _ in range(3)]
    within = random.integers(0, 256, (3, 5, 9, 3), np.uint8)[:, :, 2:7]  # not contiguous
    exact = [random.random((5, 5, 3), np.float32) for _ in range(2)]
    for rows in (alike, alike[:1], list(within), exact, [alike[0], exact[0]], [within[0], alike[1]]):
        batch = batch_of(rows)
        np.testing.assert_array_equal(batch, np.stack(rows))
        assert batch.dtype == np.stack(rows).dtype
        assert batch.flags.c_contiguous


async def test_a_batch_is_looked_at_where_it_is_computed() -> None:
    engine = FunctionEngine(
        lambda rows, stream: {"logits": np.where(np.asarray(rows, np.float32)[:, 0, 0] > 0, 0.25, np.inf)}
    )
    metrics = Metrics(CollectorRegistry())
    with StreamPool(1, stall_timeout=60, metrics=metrics) as streams:
        run = BatchRunner(streams, hold=nullcontext)
        one, zero = await run(served_model(model_info(), engine), [np.full((2, 2, 3), shade) for shade in (1, 0)])
    assert logits(one) == [0.25] * 3
    assert isinstance(zero, InferenceFailed)
