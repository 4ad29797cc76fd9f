"""Outputs by name, as tensor protocols ask for them."""

from __future__ import annotations

import numpy as np
import pytest

from condconv_serve.domain import RoutingLayout, RowAnswer, Timings, rows_of
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.named_outputs import OPEN, NamedOutputs, outputs_of, stacked
from tests.contract.fakes import ColourDetector, detector_info, model_info

MODEL = model_info()


def row(best: int) -> RowAnswer:
    logits = np.zeros(6, np.float32)
    logits[best] = 2
    tensors = {"logits": logits, "routing": np.full((2, 3), best / 10, np.float32)}
    return RowAnswer(tensors=tensors, timings=Timings(decode=0, queue=0, inference=0, total=0), batch_size=1)


def test_outputs_with_shapes_and_types() -> None:
    found = {output.name: (output.shape, output.dtype) for output in outputs_of(MODEL)}
    assert found == {
        "logits": ((6,), "float32"),
        "routing": ((2, 3), "float32"),
        "features": ((3,), "float32"),
        "probabilities": ((6,), "float32"),
        "label": ((), "str"),
    }
    assert "routing" not in {output.name for output in outputs_of(model_info(layout=RoutingLayout()))}


def test_answers_have_what_was_asked_for_in_that_order() -> None:
    task = NamedOutputs(("label", "probabilities", "routing"))
    task.check(MODEL)
    answers = [task.answer(row(best), MODEL) for best in (3, 1)]
    assert list(answers[0]) == ["label", "probabilities", "routing"]
    tensors = stacked(answers)
    assert tensors["label"].tolist() == ["class 3", "class 1"]
    assert tensors["probabilities"].dtype == np.float32
    exponentials = np.exp([0, 0, 0, 2.0, 0, 0])
    np.testing.assert_allclose(tensors["probabilities"][0], exponentials / exponentials.sum(), rtol=1e-6)
    np.testing.assert_array_equal(tensors["routing"][:, 0, 0], np.array([0.3, 0.1], np.float32))
    specs = {output.name: output for output in outputs_of(MODEL)}
    for name, values in tensors.items():
        assert values.shape == (2, *specs[name].shape)
        assert (values.dtype == object) if specs[name].dtype == "str" else (values.dtype.name == specs[name].dtype)


def test_unknown_outputs_are_refused() -> None:
    with pytest.raises(
        InvalidParameter, match="no output 'boxes'; it has logits, routing, features, probabilities, label"
    ):
        NamedOutputs(("logits", "boxes")).check(MODEL)


def test_outputs_of_a_detector() -> None:
    model = detector_info()
    specs = {output.name: output.shape for output in outputs_of(model)}
    assert specs == {
        "boxes": (64, 4),
        "scores": (64, 3),
        "routing": (2, 3),
        "detection_boxes": (OPEN, 4),
        "detection_scores": (OPEN,),
        "detection_classes": (OPEN,),
        "num_detections": (),
    }
    tensors = rows_of(ColourDetector()(np.full((1, 32, 32, 3), (0, 0, 255), np.uint8)))[0]
    answered = RowAnswer(tensors=tensors, timings=row(0).timings, batch_size=1)
    answer = NamedOutputs(tuple(specs), Detect(max_detections=9)).answer(answered, model)
    for name, values in answer.items():
        assert values.dtype == np.float32
        assert values.shape == tuple(9 if size == OPEN else size for size in specs[name])
    assert (answer["num_detections"], answer["detection_classes"].tolist()) == (9, [2] * 9)
    assert answer["boxes"] is tensors["boxes"]
    assert NamedOutputs(()).scores_in(answer) == [1] * 9
    assert NamedOutputs(()).scores_in({"boxes": tensors["boxes"]}) is None
