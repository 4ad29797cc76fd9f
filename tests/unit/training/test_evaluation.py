import json

import numpy as np
import pytest

from condconv_serve.routing.effect_size import effect_size
from condconv_serve.training.batches import Selection
from condconv_serve.training.evaluation import Evaluation, evaluate, variance_between
from condconv_serve.training.request import Epoch
from tests.unit.training.samples import PREPROCESSING

pytestmark = pytest.mark.tensorflow


class Fixed:
    """Answers with what it was given, batch by batch."""

    def __init__(self, logits, routing):
        self._logits, self._routing, self._at = logits, routing, 0

    def predict_on_batch(self, pixels):
        part = slice(self._at, self._at + len(pixels))
        self._at += len(pixels)
        return {
            "logits": self._logits[part],
            "routing": {name: weights[part] for name, weights in self._routing.items()},
        }


def run(logits, classes, routing=None, **options):
    images = Selection(np.zeros((len(logits), 32, 32, 3), np.uint8), np.arange(len(logits)))
    given = {"teacher": None, "temperature": 1.0, "preprocessing": PREPROCESSING, "batch_size": 2} | options
    network = Fixed(np.array(logits, np.float32), routing or {})
    return evaluate(network, images, np.array(classes), **given)


def test_accuracy_and_cross_entropy():
    found = run([[np.log(3), 0], [np.log(3), 0], [0, 1000.0]], [0, 1, 1])
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx((-np.log(0.75) - np.log(0.25) - 0) / 3)
    assert (found.mean_entropy, found.mean_between_classes) == (None, None)


def test_divergence_from_a_teacher():
    teacher = np.array([[np.log(3), 0], [0, 0]], np.float32)
    same = run(teacher, [0, 0], teacher=teacher)
    assert same.loss == pytest.approx(0, abs=1e-6)
    other = run([[0, 0], [0, 0]], [0, 0], teacher=teacher)
    assert other.loss == pytest.approx((0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2, rel=1e-5)
    softer = run([[0, 0], [0, 0]], [0, 0], teacher=2 * teacher, temperature=2.0)
    assert softer.loss == pytest.approx(4 * other.loss, rel=1e-5)


def test_variance_between_classes():
    classes = np.array([0, 0, 1, 1])
    assert variance_between(np.array([[0.0], [0.0], [1.0], [1.0]]), classes) == pytest.approx(1)
    # Class means don't differ at all, which is less than chance alone gives: (0 - 1/3) / (1 - 1/3).
    assert variance_between(np.array([[0.0], [1.0], [0.0], [1.0]]), classes) == pytest.approx(-0.5)
    assert variance_between(np.array([[0.0], [1.0]]), np.array([0, 1])) == 0
    assert variance_between(np.full((4, 2), 0.3), classes) == 0
    rng = np.random.default_rng(0)
    by_chance = [variance_between(rng.normal(size=(40, 4)), np.arange(40) % 10) for _ in range(200)]
    assert np.mean(by_chance) == pytest.approx(0, abs=0.02)  # not corrected: 9 / 39
    weights = rng.random((20, 4))
    assert variance_between(weights, np.arange(20) % 5) == pytest.approx(
        effect_size(weights[:, None], np.arange(20) % 5, resamples=1).share[0]
    )


def test_blocks_are_told_apart():
    routing = {"one": np.array([[1.0, 0.0], [0.0, 1.0]] * 2), "two": np.full((4, 2), 0.4)}
    found = run([[1, 0], [0, 1]] * 2, [0, 1] * 2, routing)
    assert found.entropy == pytest.approx({"one": 0, "two": 1})
    assert found.between_classes == pytest.approx({"one": 1, "two": 0})
    assert found.mean_entropy == pytest.approx(0.5)
    epoch = Epoch(number=1, training_loss=0.5, validation=found, seconds=2.0)
    assert Epoch.from_json(json.loads(json.dumps(epoch.to_json())), Evaluation) == epoch
