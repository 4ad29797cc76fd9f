"""Figures of judged answers, against numbers computed by hand."""

import numpy as np
import pytest

from condconv_serve.domain import LOGITS, RowAnswer, Timings
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.quality import BINS, MAX_MATRIX, Judge, Judged, Share, quality_of
from tests.contract.fakes import model_info

NO_TIME = Timings(decode=0, queue=0, inference=0, total=0)


def judged(truth, logits):
    row = RowAnswer(tensors={LOGITS: np.array(logits, np.float32)}, timings=NO_TIME, batch_size=1)
    return Judge(truth).answer(row, model_info(classes=len(logits)))


class TestJudge:
    @pytest.mark.parametrize(
        ("truth", "logits", "predicted", "rank"),
        [
            (0, [3, 2, 1], 0, 1),
            (2, [3, 2, 1], 0, 3),
            (1, [1, 1, 1], 0, 2),  # the order in which the best classes are answered
            (1, [0, 5, 5], 1, 1),
            (2, [0, 5, 5], 1, 2),
        ],
    )
    def test_rank(self, truth, logits, predicted, rank):
        found = judged(truth, logits)
        assert (found.truth, found.predicted, found.rank) == (truth, predicted, rank)

    def test_confidence_and_loss(self):
        found = judged(1, [np.log(3), 0])
        assert found.confidence == pytest.approx(0.75)
        assert found.loss == pytest.approx(-np.log(0.25))
        assert judged(1, [1000.0, 0]).loss == pytest.approx(1000), "no overflow"

    def test_a_class_that_the_model_lacks(self):
        with pytest.raises(InvalidParameter, match="no class 6; it has 6"):
            Judge(6).check(model_info(classes=6))


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0, 0.27753),
        (10, 10, 0.72247, 1),
        (721, 1000, 0.69240, 0.74791),
        (1, 1, 0.20654, 1),
    ],
)
def test_wilsons_interval(hits, total, low, high):
    found = Share.of(hits, total)
    assert (found.value, found.low, found.high) == pytest.approx((hits / total, low, high), abs=1e-5)


def one(truth, predicted, *, rank=None, confidence=0.5, loss=1.0):
    rank = rank or (1 if truth == predicted else 2)
    return Judged(truth=truth, predicted=predicted, rank=rank, confidence=confidence, loss=loss)


SOME = [one(0, 0), one(0, 0), one(0, 2), one(0, 2, rank=6), one(1, 1, loss=3.0), one(1, 0)]


class TestQuality:
    def test_hits(self):
        found = quality_of(SOME, num_classes=10)
        assert found.images == 6
        assert (found.top1.value, found.top5.value) == (3 / 6, 5 / 6)
        assert found.mean_recall == (2 / 4 + 1 / 2) / 2
        assert found.loss == pytest.approx(8 / 6)
        assert quality_of(SOME, num_classes=5).top5 is None, "all classes are among the first five"

    def test_classes(self):
        found = {one.index: one for one in quality_of(SOME, num_classes=10).classes}
        assert found.keys() == {0, 1, 2}
        assert (found[0].images, found[0].answers, found[0].recall, found[0].precision) == (4, 3, 2 / 4, 2 / 3)
        assert (found[1].images, found[1].answers, found[1].recall, found[1].precision) == (2, 1, 1 / 2, 1)
        assert (found[2].images, found[2].recall, found[2].precision) == (0, None, 0)
        assert quality_of([one(3, 4)], num_classes=10).classes[0].precision is None

    def test_confusions(self):
        found = quality_of([*SOME, one(5, 0)], num_classes=10)
        assert found.most_confused(2) == [(0, 2, 2), (1, 0, 1)]
        assert found.most_confused(9)[2:] == [(5, 0, 1)]
        assert [one.index for one in found.classes] == [0, 1, 2, 5]
        assert found.matrix().tolist() == [[2, 0, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
        assert found.to_json()["confusion"] == {"classes": [0, 1, 2, 5], "matrix": found.matrix().tolist()}

    def test_a_matrix_of_millions_is_left_out(self):
        found = quality_of([one(index, index) for index in range(MAX_MATRIX + 1)], num_classes=MAX_MATRIX + 1)
        assert found.matrix() is None
        assert found.to_json()["confusion"]["matrix"] is None

    def test_calibration(self):
        """Two bins: 3 images of confidence 0.9 of which 2 are right, and one of 0.5 that is wrong."""
        sure = [one(0, 0, confidence=0.9), one(0, 0, confidence=0.9), one(0, 1, confidence=0.9)]
        found = quality_of([*sure, one(0, 1, confidence=0.5)], num_classes=10)
        assert found.confidence == pytest.approx((3 * 0.9 + 0.5) / 4)
        assert found.calibration_error == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * (0.5 - 0))
        bins = [found for found in found.bins if found.images]
        assert [(found.images, found.confidence, found.accuracy) for found in bins] == [
            (1, pytest.approx(0.5), 0),
            (3, pytest.approx(0.9), pytest.approx(2 / 3)),
        ]
        assert bins[1].low < 0.9 <= bins[1].high
        assert len(found.bins) == BINS

    @pytest.mark.parametrize(("confidence", "place"), [(1 / 15, 0), (1 / 15 + 1e-9, 1), (1.0, BINS - 1), (1e-12, 0)])
    def test_bins_hold_their_upper_end(self, confidence, place):
        found = quality_of([one(0, 0, confidence=confidence)], num_classes=10)
        assert [number for number, bin_ in enumerate(found.bins) if bin_.images] == [place]
