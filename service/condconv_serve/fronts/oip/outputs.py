"""Which outputs a request asks for, and what they become: tensors, or classes as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import LOGITS, PROBABILITIES, ModelInfo, Tensors
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.oip.datatypes import BYTES, datatype_of
from condconv_serve.fronts.oip.parameters import OutputParameters
from condconv_serve.fronts.oip.shown import shown
from condconv_serve.tasks.named_outputs import outputs_of

BY_CLASS = (LOGITS, PROBABILITIES)
"""The outputs with a value per class, which the parameter `classification` is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedOutput:
    """An output that a request asks for.

    Attributes:
        name: of the output.
        binary: whether it is returned as raw bytes.
        classes: how many classes to return as text in place of the tensor; 0 means the tensor.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class OutputTensor:
    """An output of an answer: `values` `[N, ...]` of the data type; those of `BYTES` are text."""

    name: str
    datatype: str
    values: NDArray[Any]


def all_outputs(model: ModelInfo, *, binary: bool) -> tuple[WantedOutput, ...]:
    """What a request gets that names no outputs."""
    return tuple(WantedOutput(name=output.name, binary=binary) for output in outputs_of(model))


def wanted(named: Iterable[tuple[Any, OutputParameters]], *, model: ModelInfo) -> tuple[WantedOutput, ...]:
    """Check the outputs that a request names, with their parameters, up to the first one that can't be had.

    Raises:
        InvalidParameter: the model has no such output, one is named twice, or a number of classes is impossible.
    """
    known = [output.name for output in outputs_of(model)]
    found: dict[str, WantedOutput] = {}
    for name, parameters in named:
        if not isinstance(name, str) or name not in known:
            raise InvalidParameter(f"{model.name} has no output {shown(name)}; it has {', '.join(known)}.")
        if name in found:
            raise InvalidParameter(f"Output {name} is asked for more than once.")
        _check_classes(name, parameters.classification, model)
        found[name] = WantedOutput(name=name, binary=parameters.binary_data, classes=parameters.classification)
    return tuple(found.values())


def output_tensors(outputs: Sequence[WantedOutput], tensors: Tensors, model: ModelInfo) -> list[OutputTensor]:
    """The tensors of an answer, in the order asked for.

    Args:
        outputs: what is wanted.
        tensors: the answer's outputs by name, `[N, ...]`.
        model: gave them.
    """
    datatypes = {output.name: datatype_of(output.dtype) for output in outputs_of(model)}
    return [
        OutputTensor(output.name, BYTES, classes_of(tensors[output.name], output.classes, model))
        if output.classes
        else OutputTensor(output.name, datatypes[output.name], tensors[output.name])
        for output in outputs
    ]


def classes_of(values: NDArray[Any], count: int, model: ModelInfo) -> NDArray[np.object_]:
    """The highest values as text, best first: `score:index:label`, as Triton writes them.

    Args:
        values: `[N, classes]`.
        count: how many of each row.
        model: has the labels.

    Returns:
        Text `[N, count]`; equal values stand in the order of the classes.
    """
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    texts = [
        [f"{row[index]:f}:{index}:{model.labels[index].label}" for index in indexes]
        for row, indexes in zip(values, best.tolist(), strict=True)
    ]
    return np.array(texts, np.object_)


def _check_classes(name: str, count: int, model: ModelInfo) -> None:
    if count and name not in BY_CLASS:
        raise InvalidParameter(f"classification is for {' and '.join(BY_CLASS)}, not for {name}.")
    if count > len(model.labels):
        raise InvalidParameter(
            f"classification of {name} may be from 1 to {len(model.labels)}, the number of classes, not {count}."
        )
