import itertools
import math

import keras
import numpy as np
import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import ARCHITECTURES, build_network, get_architecture, outline
from condconv_serve.nn.efficientnet import FAMILY, EfficientNetSpec
from condconv_serve.nn.families import to_manifest
from condconv_serve.nn.mbconv import BlockArgs
from condconv_serve.nn.spec import round_filters
from tests.unit.runtime.samples import small_efficientnet

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize(
    ("name", "blocks", "experts", "routing"),
    [
        ("efficientnet-b0", 16, 0, range(0)),
        ("efficientnet-condconv-b0-4e", 16, 4, range(8, 16)),
        ("efficientnet-condconv-b0-8e", 16, 8, range(8, 16)),
        ("efficientnet-condconv-b0-8e-depth", 23, 8, range(12, 23)),
        ("efficientnet-lite0", 16, 0, range(0)),
        ("efficientnet-lite0-condconv-4e", 16, 4, range(8, 16)),
    ],
)
def test_registered_architectures(name, blocks, experts, routing):
    architecture = ARCHITECTURES[name]
    assert architecture.num_experts == experts
    assert [block.name for block in architecture.blocks()] == [f"block_{i}" for i in range(blocks)]
    assert architecture.condconv == tuple(f"block_{i}" for i in routing)
    assert (architecture.num_classes, architecture.image_size) == (1000, 224)
    assert (architecture.stem_filters, architecture.head_filters) == (32, 1280)


def test_no_other_architecture_is_registered():
    assert len(FAMILY.architectures) == 13
    assert all(name == architecture.name for name, architecture in ARCHITECTURES.items())


@pytest.mark.parametrize(
    ("number", "blocks", "last", "size", "dropout"),
    [
        (1, 23, 320, 240, 0.2),
        (2, 23, 352, 260, 0.3),
        (3, 26, 384, 300, 0.3),
        (4, 32, 448, 380, 0.4),
        (5, 39, 512, 456, 0.4),
        (6, 45, 576, 528, 0.5),
        (7, 55, 640, 600, 0.5),
    ],
)
def test_the_larger_ones(number, blocks, last, size, dropout):
    architecture = ARCHITECTURES[f"efficientnet-b{number}"]
    assert (len(architecture.blocks()), architecture.blocks()[-1].out_filters) == (blocks, last)
    assert (architecture.image_size, architecture.dropout_rate, architecture.num_experts) == (size, dropout, 0)


def block(name, kernel_size, strides, expand_ratio, filters, *, se, experts):
    return BlockArgs(
        name=name,
        kernel_size=kernel_size,
        strides=strides,
        expand_ratio=expand_ratio,
        in_filters=filters[0],
        out_filters=filters[1],
        se_filters=se,
        num_experts=experts,
    )


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("efficientnet-condconv-b0-8e", block("block_0", 3, 1, 1, (32, 16), se=8, experts=0)),
        ("efficientnet-condconv-b0-8e", block("block_1", 3, 2, 6, (16, 24), se=4, experts=0)),
        ("efficientnet-condconv-b0-8e", block("block_2", 3, 1, 6, (24, 24), se=6, experts=0)),
        ("efficientnet-condconv-b0-8e", block("block_3", 5, 2, 6, (24, 40), se=6, experts=0)),
        ("efficientnet-condconv-b0-8e", block("block_5", 3, 2, 6, (40, 80), se=10, experts=0)),
        ("efficientnet-condconv-b0-8e", block("block_8", 5, 1, 6, (80, 112), se=20, experts=8)),
        ("efficientnet-condconv-b0-8e", block("block_11", 5, 2, 6, (112, 192), se=28, experts=8)),
        ("efficientnet-condconv-b0-8e", block("block_12", 5, 1, 6, (192, 192), se=48, experts=8)),
        ("efficientnet-condconv-b0-8e", block("block_15", 3, 1, 6, (192, 320), se=48, experts=8)),
        ("efficientnet-condconv-b0-8e-depth", block("block_1", 3, 1, 1, (16, 16), se=4, experts=0)),
        ("efficientnet-condconv-b0-8e-depth", block("block_22", 3, 1, 6, (320, 320), se=80, experts=8)),
        (
            "efficientnet-lite0-condconv-4e",
            block("block_15", 3, 1, 6, (192, 320), se=0, experts=4),
        ),
    ],
)
def test_block_arguments(architecture, expected):
    assert expected in ARCHITECTURES[architecture].blocks()


@pytest.mark.parametrize(
    ("filters", "coefficient", "rounded"),
    [
        (32, 1.0, 32),
        (32, 0.25, 8),
        (16, 0.25, 8),  # at least 8
        (24, 0.25, 8),
        (40, 0.25, 16),  # 10 -> 8 would lose 20 %
        (80, 0.25, 24),
        (112, 0.25, 32),
        (1280, 0.25, 320),
        (32, 1.1, 32),  # 35.2 -> 32 loses 9 %
        (24, 1.1, 24),
        (112, 1.1, 120),
        (320, 1.1, 352),
        (100, 1.0, 104),  # halves go up
    ],
)
def test_rounding_of_widths(filters, coefficient, rounded):
    assert round_filters(filters, coefficient) == rounded


def test_width_scales_every_block():
    blocks = get_architecture("efficientnet-condconv-b0-4e", width_coefficient=0.25).blocks()
    assert [b.out_filters for b in blocks] == [8] * 3 + [16] * 2 + [24] * 3 + [32] * 3 + [48] * 4 + [80]
    assert blocks[0].in_filters == 8
    assert all(b.in_filters == a.out_filters for a, b in itertools.pairwise(blocks))


def test_squeeze_and_excitation_keeps_at_least_one_filter():
    blocks = get_architecture("efficientnet-b0", width_coefficient=0.05).blocks()
    assert min(b.se_filters for b in blocks) >= 1


@pytest.mark.parametrize(
    ("changes", "condconv"),
    [
        ({"depth_coefficient": 1.1}, [f"block_{i}" for i in range(12, 23)]),
        ({"depth_coefficient": 0.3}, ["block_4", "block_5", "block_6", "block_7"]),
        ({"depth_coefficient": 0.3, "condconv": "block_1,head"}, ["block_1", "head"]),
    ],
)
def test_stages_with_experts_have_them_in_any_depth(changes, condconv):
    architecture = get_architecture("efficientnet-condconv-b0-8e", **changes)
    assert list(architecture.condconv) == condconv
    assert [b.name for b in architecture.blocks() if b.num_experts] == [n for n in condconv if n.startswith("block")]
    assert get_architecture(**to_manifest(architecture)) == architecture


def test_what_is_published_as_depth_is_what_that_depth_makes():
    published = get_architecture("efficientnet-condconv-b0-8e-depth")
    deeper = get_architecture("efficientnet-condconv-b0-8e", depth_coefficient=1.1)
    assert (published.condconv, published.blocks()) == (deeper.condconv, deeper.blocks())


def test_chosen_blocks_keep_their_distance_from_the_end_of_their_stage():
    chosen = get_architecture("efficientnet-condconv-b0-8e", condconv="block_6, block_14, block_15, classifier")
    deeper = chosen.changed(depth_coefficient=2.0)
    # Stages have 2, 4, 4, 6, 6, 8 and 2 blocks then.
    assert deeper.condconv == ("block_14", "block_29", "block_30", "block_31", "classifier")
    assert deeper.changed(depth_coefficient=1.0) == chosen


def test_parts_can_be_chosen():
    architecture = get_architecture("efficientnet-b0", num_experts=3, condconv="classifier, head, block_2")
    parameters = {"num_experts": 3, "condconv": ["block_2", "head", "classifier"]}
    assert to_manifest(architecture) == {"name": "efficientnet-b0"} | parameters
    assert get_architecture("efficientnet-b0", **parameters) == architecture
    network = outline(lambda: build_network(architecture, input_size=32))
    assert {name: weights.shape[-1] for name, weights in network.output["routing"].items()} == dict.fromkeys(
        parameters["condconv"], 3
    )
    layers = [f"block_2_{kind}" for kind in ("expand", "depthwise", "project")]
    assert [layer.name for layer in network.layers if hasattr(layer, "num_experts")] == [*layers, "head", "logits"]


def test_conventions_can_be_chosen():
    changes = {"padding": "symmetric", "norm_epsilon": 1e-5, "classifier_bias": False}
    network = outline(lambda: build_network(get_architecture("efficientnet-b0", **changes), input_size=32))
    assert {layer.epsilon for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)} == {1e-5}
    padded = [layer.name for layer in network.layers if isinstance(layer, keras.layers.ZeroPadding2D)]
    assert padded == ["stem_pad", *(f"block_{number}_depthwise_pad" for number in (1, 3, 5, 11))]
    assert network.get_layer("logits").bias is None


def test_manifest_names_only_what_was_changed():
    assert to_manifest(get_architecture("efficientnet-b0")) == {"name": "efficientnet-b0"}
    changed = get_architecture("efficientnet-b0", num_classes=7, width_coefficient=0.5)
    assert to_manifest(changed) == {"name": "efficientnet-b0", "num_classes": 7, "width_coefficient": 0.5}
    assert get_architecture(**to_manifest(changed)) == changed


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number from 1 to 1000000, not 0"),
        ({"num_classes": 10.0}, "num_classes must be a whole number from 1"),
        ({"num_classes": "10"}, "num_classes must be a number, not '10'"),
        ({"num_classes": True}, "num_classes must be a number, not True"),
        ({"num_classes": None}, "num_classes must be a number, not None"),
        ({"image_size": 31}, "image_size must be a whole number from 32 to 2048, not 31"),
        ({"image_size": 4096}, "image_size must be a whole number from 32 to 2048"),
        ({"width_coefficient": 0}, "width_coefficient must be a number from 0.05 to 20, not 0"),
        ({"width_coefficient": math.nan}, "width_coefficient must be a number, not nan"),
        ({"depth_coefficient": -1}, "depth_coefficient must be a number from 0.05 to 6"),
        ({"depth_coefficient": 6.5}, "depth_coefficient must be a number from 0.05 to 6, not 6.5"),
        ({"depth_coefficient": math.inf}, "depth_coefficient must be a number, not inf"),
        ({"dropout_rate": 1}, "dropout_rate must be a number from 0 to 0.99, not 1"),
        ({"stem_filters": 16}, "Unknown architecture parameter stem_filters; known are num_classes"),
        ({"num_experts": 4}, "efficientnet-b0 has no CondConv blocks, so it can't have experts"),
        ({"condconv": "block_16"}, "doesn't have: block_16; it has block_0 to block_15, head, classifier"),
    ],
)
def test_impossible_overrides_say_what_is_allowed(overrides, says):
    with pytest.raises(ConfigurationError, match=says):
        get_architecture("efficientnet-b0", **overrides)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match="Unknown architecture 'resnet'; known are efficientnet-b0, "):
        get_architecture("resnet")


def test_every_overridable_parameter_can_be_overridden():
    overrides = {
        "num_experts": 6,
        "num_classes": 3,
        "image_size": 64,
        "width_coefficient": 0.5,
        "depth_coefficient": 2,
        "dropout_rate": 0,
        "condconv": ("block_1", "head"),
        "padding": "symmetric",
        "norm_epsilon": 1e-5,
        "classifier_bias": False,
    }
    assert set(overrides) == set(EfficientNetSpec.OVERRIDABLE)
    architecture = get_architecture("efficientnet-condconv-b0-4e", **overrides)
    assert {key: getattr(architecture, key) for key in overrides} == overrides


def test_the_deepest_network_can_be_built():
    deepest = get_architecture("efficientnet-condconv-b0-8e", depth_coefficient=6, width_coefficient=0.05)
    assert len(outline(lambda: build_network(deepest)).weights) > 1500


def test_saved_keras_model_computes_the_same(randomise, tmp_path):
    model = randomise(small_efficientnet("efficientnet-condconv-b0-4e", image_size=32))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    found, expected = loaded(pixels, training=False), model(pixels, training=False)
    np.testing.assert_array_equal(found["logits"], expected["logits"])
    assert found["routing"].keys() == expected["routing"].keys()
    for block, weights in expected["routing"].items():
        np.testing.assert_array_equal(found["routing"][block], weights)
