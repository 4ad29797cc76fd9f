"""Named tensors as the answer, for protocols whose callers choose outputs by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from condconv_serve.domain import LABEL, LOGITS, PROBABILITIES, ModelInfo, OutputSpec, RowAnswer, Tensors
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import softmax


def outputs_of(model: ModelInfo) -> tuple[OutputSpec, ...]:
    """What may be asked for: what the engine computes, and what follows from it. Empty outputs are left out.

    A static network has no `routing`, for instance.
    """
    computed = [output for output in model.outputs if 0 not in output.shape]
    if not any(output.name == LOGITS for output in computed):
        return tuple(computed)
    classes = (len(model.labels),)
    return (*computed, OutputSpec(PROBABILITIES, classes), OutputSpec(LABEL, (), "str"))


@dataclass(frozen=True, slots=True)
class NamedOutputs:
    """The task of returning outputs.

    Attributes:
        names: which ones, as `outputs_of` names them.
    """

    names: tuple[str, ...]

    def check(self, model: ModelInfo) -> None:
        """Refuse outputs that the model doesn't have.

        Raises:
            InvalidParameter: says which there are.
        """
        known = [output.name for output in outputs_of(model)]
        if unknown := [name for name in self.names if name not in known]:
            raise InvalidParameter(f"{model.name} has no output {unknown[0][:100]!r}; it has {', '.join(known)}.")

    def answer(self, row: RowAnswer, model: ModelInfo) -> Tensors:
        """The outputs of one row, by name, in the order of `names`; `label` is an array of text without axes."""
        return {name: _output(name, row.tensors, model) for name in self.names}


def _output(name: str, tensors: Tensors, model: ModelInfo) -> np.ndarray:
    if name == PROBABILITIES:
        return softmax(tensors[LOGITS]).astype(np.float32)
    if name == LABEL:
        return np.array(model.labels[int(tensors[LOGITS].argmax())].label, np.object_)
    return tensors[name]


def stacked(rows: Sequence[Tensors]) -> Tensors:
    """The outputs of several rows as arrays `[N, ...]`; `rows` holds at least one."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
