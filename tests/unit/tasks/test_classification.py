import numpy as np
import pytest

from condconv_serve.domain import LOGITS, ROUTING, RowAnswer, Timings
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import Classify, softmax
from tests.contract.fakes import LAYOUT, model_info

CLASSES = 6
TIMINGS = Timings(decode=0.1, queue=0.2, inference=0.3, total=0.7)


def row(logits):
    tensors = {LOGITS: np.asarray(logits, np.float32), ROUTING: np.full(LAYOUT.shape, 0.25, np.float32)}
    return RowAnswer(tensors=tensors, timings=TIMINGS, batch_size=3)


def classes_of(logits):
    return Classify(CLASSES).answer(row(logits), model_info(classes=CLASSES)).classes


def test_an_answer_has_all_that_is_known_of_the_row():
    answer = Classify(2).answer(row([0, 5, 1, 0, 0, 0]), model_info(classes=CLASSES))
    assert [(c.index, c.label, c.synset) for c in answer.classes] == [(1, "class 1", "n1"), (2, "class 2", None)]
    assert answer.routing.layout == LAYOUT
    np.testing.assert_array_equal(answer.routing.weights, np.full((2, 3), 0.25, np.float32))
    assert (answer.timings, answer.batch_size) == (TIMINGS, 3)


@pytest.mark.parametrize(("classes", "found"), [(4, 4), (5, 5), (7, 5)])
def test_without_top_k_there_are_five_or_as_many_as_there_are(classes, found):
    assert len(Classify().answer(row(np.arange(classes)), model_info(classes=classes)).classes) == found


@pytest.mark.parametrize("top_k", [0, -1, CLASSES + 1])
def test_impossible_top_k(top_k):
    with pytest.raises(InvalidParameter) as caught:
        Classify(top_k).check(model_info(classes=CLASSES))
    assert str(caught.value) == f"top_k must be from 1 to 6, the number of classes of fake, not {top_k}."


@pytest.mark.parametrize("top_k", [None, 1, CLASSES])
def test_possible_top_k(top_k):
    Classify(top_k).check(model_info(classes=CLASSES))


@pytest.mark.parametrize(
    ("top_k", "threshold", "found"),
    [
        (None, 0.0, [3, 1, 0, 2, 4]),
        (None, 0.1, [3, 1]),
        (1, 0.1, [3]),
        (None, 0.3, [3]),
        (None, 0.51, []),
        (1, 1.0, []),
    ],
)
def test_classes_below_the_threshold_are_left_out_of_the_top_k(top_k, threshold, found):
    logits = np.log([0.0625, 0.25, 0.0625, 0.5, 0.0625, 0.0625])
    answer = Classify(top_k, threshold).answer(row(logits), model_info(classes=CLASSES))
    assert [c.index for c in answer.classes] == found
    assert (answer.best.index, answer.best.probability) == (3, pytest.approx(0.5)), "whatever the threshold"


@pytest.mark.parametrize(("threshold", "found"), [(0.5, 2), (np.nextafter(0.5, 1), 0)])
def test_a_class_that_just_reaches_the_threshold_stays(threshold, found):
    assert len(Classify(threshold=threshold).answer(row([1, 1]), model_info(classes=2)).classes) == found


@pytest.mark.parametrize("threshold", [-0.01, 1.01, np.nan, np.inf])
def test_impossible_threshold(threshold):
    with pytest.raises(InvalidParameter, match=r"threshold must be from 0 to 1, not "):
        Classify(threshold=threshold).check(model_info(classes=CLASSES))


@pytest.mark.parametrize(
    ("logits", "order"),
    [
        ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]),
        ([0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]),
        ([1, 2, 2, 1, 2, 0], [1, 2, 4, 0, 3, 5]),
        ([-3e38, 3e38, 0, 0, 3e38, -1], [1, 4, 2, 3, 5, 0]),
    ],
)
def test_the_order_of_classes(logits, order):
    classes = classes_of(np.array(logits, np.float32))
    assert [c.index for c in classes] == order
    assert [c.label for c in classes] == [f"class {i}" for i in order]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e4, 1e38])
def test_probabilities_are_a_softmax(scale):
    logits = (scale * np.random.default_rng(0).uniform(-1, 1, CLASSES)).astype(np.float32)
    classes = classes_of(logits)
    assert sum(c.probability for c in classes) == pytest.approx(1)
    assert all(0 <= c.probability <= 1 for c in classes)
    if scale == 1:
        expected = np.exp(logits, dtype=np.float64) / np.exp(logits, dtype=np.float64).sum()
        assert [c.probability for c in classes] == pytest.approx(sorted(expected, reverse=True))


def test_a_batch_has_the_probabilities_of_its_rows():
    logits = np.random.default_rng(0).normal(0, 3, (4, CLASSES)).astype(np.float32)
    np.testing.assert_array_equal(softmax(logits), [softmax(one) for one in logits])
