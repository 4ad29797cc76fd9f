"""From tensors to the JSON of an answer."""

from __future__ import annotations

import numpy as np
import pydantic_core

from condconv_serve.domain import PROBABILITIES, Tensors
from condconv_serve.fronts.json_answers import ELEMENTS_AT_ONCE, list_json, object_json, values_of
from condconv_serve.fronts.tensor_inference import TensorAnswer
from condconv_serve.fronts.tfserving.signatures import CLASSES


def predict_json(tensors: Tensors, *, by_row: bool) -> bytes:
    """Write outputs `[N, ...]` in the row or the column format; a single one stands there without its name."""
    (first, *others) = tensors.values()
    if by_row:
        rows = _rows_json(tensors) if others else list_json(first)
        return object_json({"predictions": rows})
    columns = object_json({name: list_json(tensor) for name, tensor in tensors.items()}) if others else list_json(first)
    return object_json({"outputs": columns})


def _rows_json(tensors: Tensors) -> bytes:
    if elements_of(tensors) <= ELEMENTS_AT_ONCE:
        columns = [values_of(tensor) for tensor in tensors.values()]
        return pydantic_core.to_json([dict(zip(tensors, row, strict=True)) for row in zip(*columns, strict=True)])
    rows = (
        object_json({name: list_json(tensor[row : row + 1])[1:-1] for name, tensor in tensors.items()})
        for row in range(len(next(iter(tensors.values()))))
    )
    return b"[" + b",".join(rows) + b"]"


def elements_of(tensors: Tensors) -> int:
    """How many elements the outputs have together."""
    return sum(tensor.size for tensor in tensors.values())


def classify_json(answer: TensorAnswer) -> bytes:
    """Write the most probable classes of each image, as pairs of label and score."""
    found = best_classes(answer)
    scores = values_of(np.array([[score for _, score in row] for row in found]))
    results = [
        [[label, score] for (label, _), score in zip(row, rounded, strict=True)]
        for row, rounded in zip(found, scores, strict=True)
    ]
    return pydantic_core.to_json({"results": results})


def best_classes(answer: TensorAnswer) -> list[list[tuple[str, float]]]:
    """The most probable classes of each row: label and probability, the best first; `CLASSES` of them, or all."""
    labels, found = answer.model.labels, []
    for row in answer.tensors[PROBABILITIES]:
        order = np.argsort(-row, kind="stable")[:CLASSES]
        found.append([(labels[index].label, float(row[index])) for index in order])
    return found
