from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.domain import Preprocessing
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.lowering import CPU, XLA, Lowering
from tests.pictures import photo
from tests.unit.runtime.samples import small_efficientnet, two_blocks

pytestmark = pytest.mark.tensorflow

SIZE, CLASSES = 64, 10
STATIC, CONDCONV = "efficientnet-b0", "two blocks"
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))

Build = Callable[[str], Any]
Run = Callable[..., Any]
AssertClose = Callable[..., None]


def thumbnails() -> NDArray[np.uint8]:
    """Eight pieces of the photographs bundled with scikit-image, uint8 `[8, SIZE, SIZE, 3]`."""
    photographs: list[NDArray[np.uint8]] = [
        photo("astronaut")[::4, ::4],
        photo("cat")[::3, ::3],
        photo("coffee")[::4, ::4],
        photo("rocket")[::4, ::4],
    ]
    return np.stack([piece for whole in photographs for piece in (whole[:SIZE, :SIZE], whole[-SIZE:, -SIZE:])])


ROWS = thumbnails()


def normalised(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ((rows.astype(np.float32) - PREPROCESSING.mean) / PREPROCESSING.std).astype(np.float32)


@pytest.fixture(scope="module")
def build(randomise: Callable[[Any], Any]) -> Build:
    """Small networks by name, whose norms have the statistics of these rows: otherwise swish makes all rows alike."""

    def build(name: str) -> Any:
        network = randomise(
            two_blocks(image_size=SIZE, classes=CLASSES)
            if name == CONDCONV  # quick to compile
            else small_efficientnet(name, image_size=SIZE, num_classes=CLASSES, dropout_rate=0)
        )
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        network(normalised(ROWS), training=True)
        return network

    return build


def plain(model: Any, rows: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The unfolded Keras model on the same rows."""
    outputs = model(normalised(rows), training=False)
    routing = [np.asarray(weights) for weights in outputs["routing"].values()]
    return np.asarray(outputs["logits"]), np.stack(routing, axis=1) if routing else np.zeros((len(rows), 0, 0))


# Others on CPUs: test_engines.py and test_loading.py. Every layer with either lowering: test_lowering.py.
@pytest.mark.parametrize(("name", "lowering"), [(STATIC, CPU), (CONDCONV, XLA)], ids=["static-cpu", "condconv-xla"])
def test_one_graph_serves_every_batch_size(
    name: str, lowering: Lowering, build: Build, run_graph: Run, assert_close: AssertClose
) -> None:
    network = build(name)
    graph = freeze(network, PREPROCESSING, lowering=lowering)
    logits, routing = plain(network, ROWS)
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


@pytest.fixture(scope="module")
def small(randomise: Callable[[Any], Any]) -> Any:
    """For what doesn't depend on the network."""
    return randomise(two_blocks(image_size=SIZE, classes=CLASSES))


def test_weights_are_constants_and_norms_are_gone(small: Any) -> None:
    graph = freeze(small, PREPROCESSING).graph_def
    operations = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    assert "Const" in operations
    assert not {operation for operation in operations if "Var" in operation or "BatchNorm" in operation}
    placeholders = [node for node in graph.node if node.op == "Placeholder"]
    assert [node.name for node in placeholders] == ["rows"]
    assert [dimension.size for dimension in placeholders[0].attr["shape"].shape.dim] == [-1, SIZE, SIZE, 3]


def test_the_graph_knows_its_image_size(small: Any) -> None:
    assert freeze(small, PREPROCESSING).image_size == SIZE


def test_a_later_change_of_the_model_does_not_reach_the_graph(small: Any, run_graph: Run) -> None:
    changing = keras.models.clone_model(small)
    changing.set_weights(small.get_weights())
    graph = freeze(changing, PREPROCESSING)
    before = run_graph(graph, ROWS[:1])
    for weight in changing.weights:
        weight.assign(np.zeros(weight.shape))
    for name, value in run_graph(graph, ROWS[:1]).items():
        np.testing.assert_array_equal(value, before[name])


def test_rows_are_normalised_per_channel(small: Any, run_graph: Run) -> None:
    graph, other = (
        freeze(small, Preprocessing(transform="pillow", image_size=SIZE, mean=mean))
        for mean in ((10.0, 127.0, 200.0), (200.0, 127.0, 10.0))
    )
    swapped = run_graph(graph, ROWS[:2])["logits"], run_graph(other, ROWS[:2])["logits"]
    assert not np.allclose(*swapped, rtol=1e-3)
