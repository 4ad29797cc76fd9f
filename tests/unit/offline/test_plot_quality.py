"""Pictures of evaluations: which classes they show, and that they say what they are."""

import numpy as np
import pytest

from condconv_serve.domain import Label
from condconv_serve.offline.plot_quality import MAX_CLASSES, draw_quality, plot_quality, shown_classes
from condconv_serve.routing.palette import LIGHT
from condconv_serve.routing.picture import Look, look_of
from condconv_serve.tasks.quality import Judged, quality_of


def judged(truth, predicted, confidence=0.95):
    return Judged(truth=truth, predicted=predicted, rank=1 + (truth != predicted), confidence=confidence, loss=1.0)


LABELS = [Label(index, f"class {index} $x^2$") for index in range(100)]


@pytest.fixture(scope="module")
def quality():
    """Three right, one wrong, and one unsure and wrong, of two classes; a third one is answered."""
    return quality_of([*[judged(0, 0)] * 3, judged(0, 7), judged(4, 0, 0.3)], num_classes=100)


def test_the_most_mistaken_classes_are_shown():
    right = [judged(index, index) for index in range(MAX_CLASSES + 5)]
    found = quality_of([*right, judged(2, 44), judged(2, 3)], num_classes=100)
    shown = [found.classes[place].index for place in shown_classes(found)]
    assert shown == [*range(MAX_CLASSES - 1), 44]


def test_the_heat_map_is_the_matrix_by_rows(quality):
    figure = draw_quality(quality, LABELS, Look(), title="fake/1")
    calibration, images, confusions, _ = figure.axes
    assert [bar.get_height() for bar in calibration.patches] == [0, 0.75]
    assert [bar.get_height() for bar in images.patches if bar.get_height()] == [1, 4]
    cells = np.ma.filled(confusions.collections[0].get_array(), np.nan)
    np.testing.assert_array_equal(cells, [[0.75, 0, 0.25], [1, 0, 0], [np.nan] * 3])
    assert next(text.get_text() for text in confusions.get_yticklabels()) == r"class 0 \$x^2\$ (4)"
    assert figure.get_facecolor()[:3] == pytest.approx([int(LIGHT.surface[n : n + 2], 16) / 255 for n in (1, 3, 5)])


def test_a_file(quality, tmp_path):
    plot_quality(quality, LABELS, tmp_path / "q.svg", look_of(tmp_path / "q.svg"), title="fake/1")
    text = (tmp_path / "q.svg").read_text()
    assert "fake/1" in text
    assert "prefers-color-scheme: dark" in text
