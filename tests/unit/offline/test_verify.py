"""Checking a bundle leaves no engine behind, whatever comes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from condconv_serve.domain import LOGITS, Row, Tensors
from condconv_serve.errors import BundleError
from condconv_serve.offline import verify
from condconv_serve.store import open_bundle, write_bundle
from tests.contract.fakes import FunctionEngine, model_info, served_model
from tests.unit.store.samples import PLAN, new_bundle


def answer(rows: Row, stream: int) -> Tensors:
    return {LOGITS: np.zeros((len(rows), 6), np.float32)}


def no_number(rows: Row, stream: int) -> Tensors:
    return {LOGITS: np.full((len(rows), 6), np.nan, np.float32)}


def fail(rows: Row, stream: int) -> Tensors:
    raise BundleError("it fails")


@pytest.mark.parametrize(("compute", "says"), [(answer, None), (no_number, "is not finite"), (fail, "it fails")])
def test_the_engine_is_closed(
    compute: Callable[[Row, int], Tensors], says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FunctionEngine(compute)
    monkeypatch.setattr(verify, "load_model", lambda bundle, plan: served_model(model_info(), engine))
    bundle = open_bundle(write_bundle(tmp_path, new_bundle()))
    with contextlib.nullcontext() if says is None else pytest.raises(BundleError, match=says):
        verify.verify_bundle(bundle, PLAN)
    assert engine.closed.is_set()


def test_variances_that_were_never_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "load_model", lambda bundle, plan: served_model(model_info(), FunctionEngine(answer)))
    for version, values in (("1", [0, 0, 3]), ("2", [0, 0, 0])):
        weights = {"norm/moving_variance": np.array(values, np.float32)}
        write_bundle(tmp_path, new_bundle(version=version, weights=weights))
    verify.verify_bundle(open_bundle(tmp_path / "small" / "1"), PLAN)  # single channels may never vary
    with pytest.raises(BundleError, match=r"^small/2: all variances in norm/moving_variance are 0\."):
        verify.verify_bundle(open_bundle(tmp_path / "small" / "2"), PLAN)
