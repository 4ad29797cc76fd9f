"""What Python callers get for each image."""

import numpy as np
import pytest

from condconv_serve.domain import Box, ClassScore, DetectedObject, RoutingTrace
from condconv_serve.errors import CorruptImage, QueueFull
from condconv_serve.results import ImageDetections, ImageFeatures, ImagePrediction, ModelVersion, RoutingInsight
from condconv_serve.routing.views import insight_view
from tests.contract.fakes import LAYOUT, model_info

CUP = ClassScore(968, "cup", None, 0.25)


def test_an_answer_and_a_failure():
    good = ImagePrediction(id="0", classes=(CUP,), model=ModelVersion("m", "2"))
    assert (good.ok, good.top, good.label, good.probability, str(good.model)) == (True, CUP, "cup", 0.25, "m/2")
    assert repr(good) == "ImagePrediction('0': cup 25.0%)"
    bad = ImagePrediction(id="1", filename="a.jpg", error=CorruptImage("The file is truncated."))
    assert (bad.ok, bad.classes) == (False, ())
    assert repr(bad) == "ImagePrediction('a.jpg': CorruptImage: The file is truncated.)"
    for ask in (lambda: bad.top, lambda: bad.label, bad.raise_error):
        with pytest.raises(CorruptImage, match=r"^a\.jpg: The file is truncated\.$"):
            ask()
    assert str(bad.error) == "The file is truncated."


def test_raised_errors_keep_what_they_know():
    error = QueueFull("Full.", retry_after=2.5)
    error.request_id = "r1"
    with pytest.raises(QueueFull, match=r"^Image 3: Full\.$") as raised:
        ImageFeatures(id="3", error=error).raise_error()
    assert (raised.value.retry_after, raised.value.request_id) == (2.5, "r1")


def test_no_class_reaches_the_threshold():
    nothing = ImagePrediction(id="0")
    assert (nothing.top, nothing.label, nothing.probability) == (None, None, None)
    assert repr(nothing) == "ImagePrediction('0': no class)"
    assert repr(ImageFeatures(id="0", features=np.zeros(4, np.float32))) == "ImageFeatures('0': float32 [4])"


def test_objects_are_counted():
    box = Box(0.0, 0.0, 1.0, 1.0)
    objects = [
        DetectedObject(index=0, label=label, synset=None, score=0.5, box=box, box_normalized=box)
        for label in ("cup", "spoon", "spoon")
    ]
    found = ImageDetections(id="0", objects=tuple(objects), width=1, height=1)
    assert found.counts() == {"spoon": 2, "cup": 1}
    assert repr(found) == "ImageDetections('0': 2 spoon, 1 cup)"
    assert repr(ImageDetections(id="0", width=1, height=1)) == "ImageDetections('0': no object)"
    bad = ImageDetections(id="1", error=CorruptImage("The file is truncated."))
    assert (bad.objects, bad.width) == ((), None)
    with pytest.raises(CorruptImage, match="Image 1"):
        bad.counts()


def test_an_insight_of_a_view():
    class Answer:
        best = CUP
        routing = RoutingTrace(LAYOUT, np.array([[0.1, 0.2, 0.9], [0.5, 0.5, 0.5]], np.float32))

    view = insight_view(Answer(), model_info(classes=1000), live={})
    found = RoutingInsight.of(view)
    assert [block.block for block in found.blocks] == list(LAYOUT.blocks)
    assert found.blocks[0].strongest == (2, 1, 0)
    assert found.blocks[1].entropy == pytest.approx(1)
    assert (found.unusual, found.class_profile) == (None, None)
