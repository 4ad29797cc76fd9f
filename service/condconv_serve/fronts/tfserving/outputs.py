"""From tensors to the JSON of an answer."""

from __future__ import annotations

import numpy as np
import pydantic_core

from condconv_serve.domain import PROBABILITIES, Tensors
from condconv_serve.fronts.json_answers import values_of
from condconv_serve.fronts.tensor_inference import TensorAnswer
from condconv_serve.fronts.tfserving.signatures import CLASSES


def predict_json(tensors: Tensors, *, by_row: bool) -> bytes:
    """Write outputs `[N, ...]` in the row or the column format; a single one stands there without its name."""
    if by_row:
        columns = {name: values_of(tensor) for name, tensor in tensors.items()}
        if len(columns) == 1:
            rows = next(iter(columns.values()))
        else:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return pydantic_core.to_json({"predictions": rows})
    found = {name: values_of(tensor) for name, tensor in tensors.items()}
    return pydantic_core.to_json({"outputs": next(iter(found.values())) if len(found) == 1 else found})


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
