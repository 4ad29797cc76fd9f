"""Tensors become JSON, whole or piece by piece."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from condconv_serve.fronts import json_answers
from condconv_serve.fronts.json_answers import list_json, object_json, values_of
from condconv_serve.fronts.tfserving import outputs
from condconv_serve.fronts.tfserving.outputs import predict_json


@pytest.fixture(params=[1, 7, 40, 10**6])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many elements are written at once."""
    monkeypatch.setattr(json_answers, "ELEMENTS_AT_ONCE", request.param)
    monkeypatch.setattr(outputs, "ELEMENTS_AT_ONCE", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("shape", [(1,), (9,), (3, 4), (4, 3, 5), (1, 50), (50, 1), (2, 1, 1, 30), (5, 0)])
def test_pieces_make_the_whole(shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert json.loads(list_json(tensor)) == values_of(tensor)


@pytest.mark.usefixtures("pieces")
def test_text_in_pieces() -> None:
    texts = np.array(["a,b", '"]', "grün", "", "[", "x"], np.object_)
    assert json.loads(list_json(texts)) == texts.tolist()


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("by_row", [True, False])
def test_answers_are_the_same_in_pieces(by_row: bool) -> None:
    tensors: dict[str, Any] = {
        "scores": np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5),
        "label": np.array(["a", "b", "c"], np.object_),
        "count": np.array([1, 2, 3], np.float32),
    }
    values = {name: tensor.tolist() for name, tensor in tensors.items()}
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    body = json.loads(predict_json(tensors, by_row=by_row))
    assert body == ({"predictions": rows} if by_row else {"outputs": values})
    alone = json.loads(predict_json({"scores": tensors["scores"]}, by_row=by_row))
    assert alone == {"predictions" if by_row else "outputs": values["scores"]}


def test_objects() -> None:
    assert object_json({}) == b"{}"
    assert json.loads(object_json({"a": b"[1]", 'b"': "[1]", "c": None})) == {"a": [1], 'b"': "[1]", "c": None}
