import re
from collections import defaultdict

import numpy as np
import pytest
import tensorflow as tf

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import build_network, get_architecture
from condconv_serve.store.importers import assemble, read_tf_checkpoint, translate_official
from tests.parity.seeded import AVERAGED, official_tensors, read_tiny

pytestmark = pytest.mark.tensorflow

SPEC, STATISTICS = read_tiny()
TENSORS = official_tensors(SPEC, STATISTICS)
SCOPE = SPEC["architecture"]
ROUTER = f"{SCOPE}/blocks_8/dense/kernel"
PLACES = {
    "stem/kernel": "stem/conv2d/kernel",
    "stem_norm/moving_mean": "stem/tpu_batch_normalization/moving_mean",
    "block_0_depthwise/kernel": "blocks_0/depthwise_conv2d/depthwise_kernel",
    "block_0_depthwise_norm/gamma": "blocks_0/tpu_batch_normalization/gamma",
    "block_0_se_reduce/kernel": "blocks_0/se/conv2d/kernel",
    "block_0_se_expand/bias": "blocks_0/se/conv2d_1/bias",
    "block_0_project/kernel": "blocks_0/conv2d/kernel",
    "block_0_project_norm/moving_variance": "blocks_0/tpu_batch_normalization_1/moving_variance",
    "block_1_expand/kernel": "blocks_1/conv2d/kernel",
    "block_1_expand_norm/beta": "blocks_1/tpu_batch_normalization/beta",
    "block_1_depthwise_norm/beta": "blocks_1/tpu_batch_normalization_1/beta",
    "block_1_project/kernel": "blocks_1/conv2d_1/kernel",
    "block_9_routing/kernel": "blocks_9/dense/kernel",
    "block_9_routing/bias": "blocks_9/dense/bias",
    "block_9_expand/kernel": "model/blocks_9/cond_conv2d_4/condconv_kernel",
    "block_9_depthwise/kernel": "model/blocks_9/depthwise_cond_conv2d_1/depthwise_condconv_kernel",
    "block_9_project/kernel": "model/blocks_9/cond_conv2d_5/condconv_kernel",
    "block_9_project_norm/gamma": "blocks_9/tpu_batch_normalization_2/gamma",
    "block_10_expand/kernel": "model/blocks_10/cond_conv2d_7/condconv_kernel",
    "head/kernel": "head/conv2d/kernel",
    "head_norm/gamma": "head/tpu_batch_normalization/gamma",
    "logits/kernel": "head/dense/kernel",
    "logits/bias": "head/dense/bias",
}


@pytest.fixture(scope="module")
def shapes():
    model = build_network(get_architecture(SCOPE, **SPEC["override"]))
    return {weight.path: tuple(weight.shape) for weight in model.weights}


@pytest.fixture(scope="module")
def imported(shapes):
    return assemble(translate_official(TENSORS), shapes, architecture=SCOPE)


def renamed(change):
    return {change(name): value for name, value in TENSORS.items()}


def assert_same(values, expected):
    assert values.keys() == expected.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(value, expected[path], path)


def refusal(tensors, shapes, **options):
    with pytest.raises(ImportFailed) as caught:
        assemble(translate_official(tensors, **options), shapes, architecture=SCOPE)
    return str(caught.value)


@pytest.mark.parametrize(("path", "name"), PLACES.items())
def test_values_land_in_their_places(path, name, imported, shapes):
    averaged = TENSORS[f"{SCOPE}/{name}{AVERAGED}"]
    np.testing.assert_array_equal(imported[path], averaged.reshape(shapes[path]))


def test_every_variable_is_used_once(imported, shapes):
    assert imported.keys() == shapes.keys()
    assert len(imported) == len(SPEC["variables"])
    used = sorted(value.astype(np.float64).sum() for value in imported.values())
    given = sorted(TENSORS[name + AVERAGED].astype(np.float64).sum() for name in SPEC["variables"])
    np.testing.assert_allclose(used, given, rtol=1e-9, atol=1e-9)


def test_raw_values_on_demand(shapes):
    raw = assemble(translate_official(TENSORS, use_ema=False), shapes, architecture=SCOPE)
    for path, name in PLACES.items():
        np.testing.assert_array_equal(raw[path], TENSORS[f"{SCOPE}/{name}"].reshape(shapes[path]))


def test_without_averages_the_raw_values_are_taken(shapes):
    raw = {name: value for name, value in TENSORS.items() if not name.endswith(AVERAGED)}
    assert_same(
        assemble(translate_official(raw), shapes, architecture=SCOPE),
        assemble(translate_official(TENSORS, use_ema=False), shapes, architecture=SCOPE),
    )


def test_averages_alone_will_do(shapes, imported):
    averaged = {name: value for name, value in TENSORS.items() if name.endswith(AVERAGED)}
    assert_same(assemble(translate_official(averaged), shapes, architecture=SCOPE), imported)


def test_averages_alone_are_refused_where_raw_values_are_wanted():
    averaged = {name: value for name, value in TENSORS.items() if name.endswith(AVERAGED)}
    for tensors in (averaged, averaged | {"global_step": np.int64(9)}):
        with pytest.raises(ImportFailed, match="averaged weights only, and these are refused"):
            translate_official(tensors, use_ema=False)


def test_averages_of_some_variables_only_are_refused(shapes):
    tensors = {name: value for name, value in TENSORS.items() if name != ROUTER + AVERAGED}
    assert refusal(tensors, shapes) == (
        f"The checkpoint holds averaged weights, but not of 1 variables such as {ROUTER}."
    )


def counted_globally(start):
    """Number layers through the whole network, as some TensorFlow versions do: conv2d_57."""
    numbers = defaultdict(dict)

    def change(name):
        *scope, layer, leaf = name.removesuffix(AVERAGED).split("/")
        kind = re.sub(r"_\d+$", "", layer)
        seen = numbers[kind]
        number = seen.setdefault((*scope, layer), start + len(seen))
        tail = AVERAGED if name.endswith(AVERAGED) else ""
        return "/".join([*scope, f"{kind}_{number}" if number else kind, leaf]) + tail

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("/model/", "/"),
        lambda name: name.replace(f"{SCOPE}/", f"{SCOPE}/model/").replace("model/model", "model"),
        lambda name: name.replace(f"{SCOPE}/", ""),
        lambda name: name.replace(SCOPE, "somebodys_own-net.v2"),
        lambda name: name.replace("tpu_batch_normalization", "batch_normalization"),
        counted_globally(0),
        counted_globally(95),  # past 99 and 100, where the order of letters is not the order of numbers
    ],
    ids=["no model/", "model/ everywhere", "no scope", "other scope", "no tpu_", "counted", "counted from 95"],
)
def test_naming_habits(change, shapes, imported):
    tensors = renamed(change)
    assert tensors.keys() != TENSORS.keys()
    assert_same(assemble(translate_official(tensors), shapes, architecture=SCOPE), imported)


def test_order_in_the_file_does_not_matter(shapes, imported):
    backwards = dict(reversed(TENSORS.items()))
    assert_same(assemble(translate_official(backwards), shapes, architecture=SCOPE), imported)


@pytest.mark.parametrize("use_ema", [True, False])
def test_training_state_is_ignored(use_ema, shapes):
    state = {"global_step": np.int64(437_600), f"{SCOPE}/beta1_power": np.float32(0.9)}
    for slot in ("RMSProp", "RMSProp_1", "Momentum", "Adam", "Adam_1"):
        state |= {f"{name}/{slot}": TENSORS[name] for name in SPEC["variables"]}
    assert_same(
        assemble(translate_official(TENSORS | state, use_ema=use_ema), shapes, architecture=SCOPE),
        assemble(translate_official(TENSORS, use_ema=use_ema), shapes, architecture=SCOPE),
    )


def test_missing_is_named(shapes):
    tensors = {name: value for name, value in TENSORS.items() if not name.startswith(ROUTER)}
    assert refusal(tensors, shapes) == f"The weights don't fit {SCOPE}: missing: block_8_routing/kernel."


@pytest.mark.parametrize(
    "name",
    ["blocks_8/attention/kernel", "blocks_8/dense/scale", "blocks_16/dense/kernel", "blocks_3/dense_1/kernel", "spare"],
)
def test_left_over_is_named(name, shapes):
    extra = {f"{SCOPE}/{name}{suffix}": np.zeros((3, 4), np.float32) for suffix in ("", AVERAGED)}
    assert refusal(TENSORS | extra, shapes).endswith(f"left over: {SCOPE}/{name}.")


def test_a_third_pointwise_convolution_is_left_over(shapes):
    name = f"{SCOPE}/model/blocks_9/cond_conv2d_9/condconv_kernel"
    extra = {name + suffix: np.zeros((4, 6144), np.float32) for suffix in ("", AVERAGED)}
    assert refusal(TENSORS | extra, shapes).endswith(f"left over: {name}.")


def test_misshaped_is_named(shapes):
    says = refusal(TENSORS | {ROUTER + AVERAGED: np.zeros((24, 8), np.float32)}, shapes)
    assert says.endswith(f"misshaped: {ROUTER} is [24, 8], but block_8_routing/kernel is [24, 4].")


def test_given_twice_is_named(shapes):
    twin = ROUTER.replace("/blocks_8", "/model/blocks_8")
    says = refusal(TENSORS | {twin + AVERAGED: TENSORS[ROUTER + AVERAGED]}, shapes)
    assert "given twice: " in says
    assert twin in says
    assert ROUTER in says
    assert says.endswith("(both block_8_routing/kernel).")


def test_not_finite_is_named(shapes):
    broken = TENSORS[ROUTER + AVERAGED].copy()
    broken[3, 2] = np.nan
    assert refusal(TENSORS | {ROUTER + AVERAGED: broken}, shapes).endswith(f"not finite: {ROUTER}.")


def test_another_architecture_is_refused(shapes):
    model = build_network(get_architecture("efficientnet-b0", **SPEC["override"]))
    static = {weight.path: tuple(weight.shape) for weight in model.weights}
    says = refusal(TENSORS, static)
    assert "left over" in says
    assert "misshaped" in says


def test_a_checkpoint_is_read_whole(tmp_path):
    written = {name: TENSORS[name] for name in sorted(TENSORS)[:20]} | {"global_step": np.asarray(7, np.int64)}
    names = sorted(written)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(written[name]) for name in names],
    )
    read = read_tf_checkpoint(tmp_path / "model.ckpt")
    assert_same(read, written)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ImportFailed, match=r"^model\.ckpt is no readable TensorFlow checkpoint: ") as caught:
        read_tf_checkpoint(tmp_path / "model.ckpt")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("part", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_damaged_checkpoint(part, tmp_path):
    value = np.arange(1000, dtype=np.float32)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt"), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(value)]
    )
    content = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(content[: len(content) // 2])
    with pytest.raises(ImportFailed, match=r"^model\.ckpt is no readable TensorFlow checkpoint: ") as caught:
        read_tf_checkpoint(tmp_path / "model.ckpt")
    assert str(tmp_path) not in str(caught.value)
