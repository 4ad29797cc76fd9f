"""The narrow network end to end: a TF1 checkpoint on disk, imported, computed, frozen, against stored outputs."""

import numpy as np
import pytest
import tensorflow as tf

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import build_network, get_architecture
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.lowering import CPU
from condconv_serve.store.importers import assemble, read_tf_checkpoint, translate_official
from tests.parity.seeded import official_tensors, read_tiny, waves

SPEC, STORED = read_tiny()
SIZE = SPEC["image_size"]


def normalised(pixels):
    return ((pixels.astype(np.float32) - SPEC["mean"]) / SPEC["std"]).astype(np.float32)


def computed(model, pixels):
    outputs = model(normalised(pixels), training=False)
    routing = np.stack(list(outputs["routing"].values()), axis=1) if outputs["routing"] else None
    return np.asarray(outputs["logits"]), routing


def import_into(model, checkpoint, *, use_ema):
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    translation = translate_official(read_tf_checkpoint(checkpoint), use_ema=use_ema)
    values = assemble(translation, shapes, architecture=SPEC["architecture"])
    for weight in model.weights:
        weight.assign(values[weight.path])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    tensors = official_tensors(SPEC, STORED) | {"global_step": np.asarray(437_600, np.int64)}
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    return prefix


@pytest.fixture(scope="module")
def imports(checkpoint):
    """The network with the averaged weights, and what it computed with the raw ones."""
    model = build_network(get_architecture(SPEC["architecture"], **SPEC["override"]), input_size=SIZE)
    import_into(model, checkpoint, use_ema=False)
    raw_logits, _ = computed(model, waves())
    import_into(model, checkpoint, use_ema=True)
    return model, raw_logits


@pytest.fixture(scope="module")
def model(imports):
    return imports[0]


@pytest.fixture(scope="module")
def rows():
    return np.clip(np.round(waves()), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def together(model, rows):
    """What Keras computes of all rows at once."""
    return computed(model, rows)


@pytest.fixture(scope="module", params=["tensorflow", "native"])
def graph(request, model):
    mean, std = tuple(SPEC["mean"]), tuple(SPEC["std"])
    preprocessing = Preprocessing(transform="official", image_size=SIZE, mean=mean, std=std)
    lowering = request.getfixturevalue("native_lowering") if request.param == "native" else CPU
    return freeze(model, preprocessing, lowering=lowering)


def test_keras_model_equals_the_official_code(model, assert_close):
    logits, routing = computed(model, waves())
    assert_close(logits, STORED["logits"], 1e-4)
    assert_close(routing, STORED["routing"], 1e-4)


def test_routing_is_in_the_order_of_the_blocks(model):
    assert list(model.output["routing"]) == [f"block_{i}" for i in range(8, 16)]
    assert list(model(normalised(waves()[:1]))["routing"]) == [f"block_{i}" for i in range(8, 16)]


def test_raw_weights_would_show(imports):
    _, raw_logits = imports
    assert not np.abs(raw_logits - STORED["logits"]).max() < 0.1 * np.abs(STORED["logits"]).max()


def test_frozen_graph_equals_the_keras_model(graph, together, rows, run_graph, assert_close):
    outputs = run_graph(graph, rows)
    logits, routing = together
    assert_close(outputs["logits"], logits, 1e-4)
    assert_close(outputs["routing"], routing, 1e-4)
    # Rounding the pixels moves the outputs a little: the graph stays near the stored ones, too.
    assert_close(outputs["routing"], STORED["routing"], 0.02)


def test_batch_equals_its_rows_one_by_one(model, graph, together, rows, run_graph, assert_close):
    some = [1, 2]
    batch, *alone = run_graph(graph, rows, *(rows[i : i + 1] for i in some))
    for name in ("logits", "routing"):
        assert_close(np.concatenate([one[name] for one in alone]), batch[name][some], 1e-5)
    logits, routing = together
    rowwise = [computed(model, rows[i : i + 1]) for i in some]
    assert_close(np.concatenate([one for one, _ in rowwise]), logits[some], 1e-5)
    assert_close(np.concatenate([one for _, one in rowwise]), routing[some], 1e-5)
