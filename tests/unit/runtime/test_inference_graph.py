from functools import cache

import keras
import numpy as np
import pytest
from skimage import data

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import build_efficientnet, get_architecture
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.lowering import CPU, XLA

SIZE, CLASSES = 64, 10
STATIC, CONDCONV, LITE = "efficientnet-b0", "efficientnet-condconv-b0-4e", "efficientnet-lite0-condconv-4e"
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))


def thumbnails():
    """Eight pieces of the photographs bundled with scikit-image, uint8 `[8, SIZE, SIZE, 3]`."""
    photographs = [
        data.astronaut()[::4, ::4],
        data.chelsea()[::3, ::3],
        data.coffee()[::4, ::4],
        data.rocket()[::4, ::4],
    ]
    return np.stack([piece for photo in photographs for piece in (photo[:SIZE, :SIZE], photo[-SIZE:, -SIZE:])])


ROWS = thumbnails()


def normalised(rows):
    return ((rows.astype(np.float32) - PREPROCESSING.mean) / PREPROCESSING.std).astype(np.float32)


@pytest.fixture(scope="module")
def model(randomise):
    """Narrow networks by name."""

    @cache
    def build(name):
        overrides = {"width_coefficient": 0.25, "image_size": SIZE, "num_classes": CLASSES}
        return randomise(build_efficientnet(get_architecture(name, **overrides)))

    return build


def plain(model, rows):
    """The unfolded Keras model on the same rows."""
    outputs = model(normalised(rows), training=False)
    routing = [np.asarray(weights) for weights in outputs["routing"].values()]
    return np.asarray(outputs["logits"]), np.stack(routing, axis=1) if routing else np.zeros((len(rows), 0, 0))


@pytest.mark.parametrize("lowering", [CPU, XLA], ids=["cpu", "xla"])
@pytest.mark.parametrize("name", [STATIC, CONDCONV, LITE])
def test_one_graph_serves_every_batch_size(name, lowering, model, run_graph, assert_close):
    graph = freeze(model(name), PREPROCESSING, lowering=lowering)
    logits, routing = plain(model(name), ROWS)
    assert np.abs(logits - logits.mean(axis=0)).max() > 0.05 * np.abs(logits).max()  # the rows differ
    batches = [ROWS[:1], ROWS[1:4], ROWS]
    for rows, outputs, first in zip(batches, run_graph(graph, *batches), (0, 1, 0), strict=True):
        taken = slice(first, first + len(rows))
        assert_close(outputs["logits"], logits[taken], 1e-4)
        assert outputs["routing"].dtype == outputs["logits"].dtype == np.float32
        if name == STATIC:
            assert outputs["routing"].shape == (len(rows), 0, 0)
        else:
            assert_close(outputs["routing"], routing[taken], 1e-4)


def test_weights_are_constants_and_norms_are_gone(model):
    graph = freeze(model(CONDCONV), PREPROCESSING).graph_def
    operations = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    assert "Const" in operations
    assert not {operation for operation in operations if "Var" in operation or "BatchNorm" in operation}
    placeholders = [node for node in graph.node if node.op == "Placeholder"]
    assert [node.name for node in placeholders] == ["rows"]
    assert [dimension.size for dimension in placeholders[0].attr["shape"].shape.dim] == [-1, SIZE, SIZE, 3]


def test_the_graph_knows_its_image_size(model):
    assert freeze(model(STATIC), PREPROCESSING).image_size == SIZE


def test_a_later_change_of_the_model_does_not_reach_the_graph(model, run_graph):
    changing = keras.models.clone_model(model(STATIC))
    graph = freeze(changing, PREPROCESSING)
    before = run_graph(graph, ROWS[:1])
    for weight in changing.weights:
        weight.assign(np.zeros(weight.shape))
    for name, value in run_graph(graph, ROWS[:1]).items():
        np.testing.assert_array_equal(value, before[name])


def test_rows_are_normalised_per_channel(model, run_graph):
    graph, other = (
        freeze(model(STATIC), Preprocessing(transform="pillow", image_size=SIZE, mean=mean))
        for mean in ((10.0, 127.0, 200.0), (200.0, 127.0, 10.0))
    )
    swapped = run_graph(graph, ROWS[:2])["logits"], run_graph(other, ROWS[:2])["logits"]
    assert not np.allclose(*swapped, rtol=1e-3)
