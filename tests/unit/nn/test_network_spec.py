"""What families share: which parts have experts, what can be changed, and published names."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import keras
import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import ARCHITECTURES, build_network, family_of, get_architecture, outline, weight_shapes
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.families import to_manifest
from condconv_serve.nn.spec import NetworkSpec

pytestmark = pytest.mark.tensorflow

# EfficientNets have a file of their own.
SPECS = {
    name: spec
    for name, spec in ARCHITECTURES.items()
    if isinstance(spec, NetworkSpec) and not isinstance(spec, EfficientNetSpec)
}
CONDCONV = {
    "condconv-mobilenet-v1-8e": (*(f"block_{i}" for i in range(5, 13)), "classifier"),
    "condconv-mobilenet-v1-32e": (*(f"block_{i}" for i in range(5, 13)), "classifier"),
    "condconv-mobilenet-v2-8e": (*(f"block_{i}" for i in range(11, 17)), "classifier"),
    "condconv-mobilenet-v2-8e-wide": (*(f"block_{i}" for i in range(6, 17)), "head", "classifier"),
    "condconv-mnasnet-a1-8e": tuple(f"block_{i}" for i in range(10, 16)),
    "condconv-resnet-50-8e": ("block_13", "block_14", "block_15", "classifier"),
}


@cache
def _built(spec: Hashable) -> Any:
    return outline(lambda: build_network(cast(NetworkSpec, spec), input_size=64))


def built(spec: Any) -> Any:
    """A network without values; each is built once."""
    return _built(spec)


def layers_of(spec: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in built(spec).layers}


def static_twin(name: str) -> Any:
    """What is registered as the static network of the same shape."""
    return SPECS[name.removeprefix("condconv-").removesuffix("-wide").removesuffix("-8e").removesuffix("-32e")]


@pytest.mark.parametrize("name", SPECS)
def test_which_parts_have_experts(name: str) -> None:
    spec = SPECS[name]
    assert spec.condconv == CONDCONV.get(name, ())
    assert spec.num_experts == (int(name.split("-")[-1 - name.endswith("wide")][:-1]) if spec.condconv else 0)
    network = built(spec)
    routing = network.output["routing"]
    assert tuple(routing) == spec.condconv
    assert {weights.shape[-1] for weights in routing.values()} <= {spec.num_experts}
    assert network.output["logits"].shape == (None, 1000)
    assert to_manifest(spec) == {"name": name}


@pytest.mark.parametrize("name", CONDCONV)
def test_the_static_twin(name: str) -> None:
    assert replace(SPECS[name].static(), name=static_twin(name).name) == static_twin(name)
    assert built(static_twin(name)).output["routing"] == {}


def test_the_convolutions_of_a_block_share_its_routing() -> None:
    network = built(get_architecture("condconv-resnet-50-8e"))
    with_experts = {layer.name for layer in network.layers if hasattr(layer, "num_experts")}
    blocks = [f"block_{number}_{kind}" for number in (13, 14, 15) for kind in ("reduce", "conv", "expand")]
    assert with_experts == {*blocks, "logits"}
    assert not hasattr(network.get_layer("block_13_shortcut"), "num_experts")


@pytest.mark.parametrize(
    ("name", "depth", "blocks", "condconv"),
    [
        ("condconv-mobilenet-v2-8e", 1.1, 24, (*(f"block_{i}" for i in range(18, 24)), "classifier")),
        ("condconv-mnasnet-a1-8e", 0.5, 10, tuple(f"block_{i}" for i in range(4, 10))),
        ("condconv-resnet-50-8e", 1.5, 25, ("block_22", "block_23", "block_24", "classifier")),
    ],
)
def test_another_depth_moves_the_blocks_with_experts(
    name: str, depth: float, blocks: int, condconv: tuple[str, ...]
) -> None:
    spec = get_architecture(name, depth_coefficient=depth)
    assert isinstance(spec, NetworkSpec)
    assert len(spec.block_names()) == blocks
    assert spec.condconv == condconv
    assert get_architecture(**to_manifest(spec)) == spec


def test_parts_can_be_chosen() -> None:
    spec = get_architecture("mobilenet-v2", num_experts=3, condconv="classifier, head, block_2")
    assert to_manifest(spec) == {
        "name": "mobilenet-v2",
        "num_experts": 3,
        "condconv": ["block_2", "head", "classifier"],
    }
    assert get_architecture(**to_manifest(spec)) == spec
    assert {name for name, layer in layers_of(spec).items() if hasattr(layer, "num_experts")} == {
        "block_2_expand",
        "block_2_depthwise",
        "block_2_project",
        "head",
        "logits",
    }


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("mobilenet-v2", {"num_experts": 4}, "mobilenet-v2 has no CondConv blocks, so it can't have experts"),
        ("mobilenet-v2", {"condconv": ["block_3"]}, "With block_3 as CondConv layers, num_experts must be 1 at least"),
        (
            "condconv-mobilenet-v1-8e",
            {"condconv": ["block_13", "stem"]},
            "condconv names what condconv-mobilenet-v1-8e doesn't have: block_13, stem; it has block_0 to block_12, "
            "classifier",
        ),
        ("condconv-mobilenet-v1-8e", {"condconv": 3}, "doesn't have: 3;"),
        ("mobilenet-v1", {"depth_coefficient": 2}, "Unknown architecture parameter depth_coefficient"),
        ("mobilenet-v2", {"stride_first": True}, "Unknown architecture parameter stride_first"),
        ("mobilenet-v2", {"padding": "valid"}, "padding must be same or symmetric, not 'valid'"),
        ("mobilenet-v2", {"classifier_bias": 1}, "classifier_bias must be false or true, not 1"),
        ("mobilenet-v2", {"norm_epsilon": 0}, "norm_epsilon must be a number from 1e-12 to 1, not 0"),
        ("resnet-50", {"width_coefficient": 0.01}, "width_coefficient must be a number from 0.05 to 20"),
    ],
)
def test_impossible_changes_say_what_is_allowed(name: str, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        get_architecture(name, **overrides)


def test_conventions_of_the_networks() -> None:
    def strided(spec: Any) -> tuple[str, float]:
        layers = layers_of(spec)
        norms = {layer.epsilon for layer in layers.values() if isinstance(layer, keras.layers.BatchNormalization)}
        (epsilon,) = norms
        padded = {name for name, layer in layers.items() if isinstance(layer, keras.layers.ZeroPadding2D)}
        return ("symmetric" if "stem_pad" in padded else "same"), epsilon

    for name, expected in {
        "mobilenet-v1": ("same", 1e-3),
        "mobilenet-v2": ("same", 1e-3),
        "mnasnet-a1": ("symmetric", 1e-5),
        "resnet-50": ("symmetric", 1e-5),
    }.items():
        assert strided(get_architecture(name)) == expected
    changed = get_architecture("mobilenet-v2", padding="symmetric", norm_epsilon=1e-5)
    assert strided(changed) == ("symmetric", 1e-5)
    sizes = {
        layer.output.shape[1] for name, layer in layers_of(changed).items() if name.endswith(("_depthwise", "stem"))
    }
    assert sizes == {32, 16, 8, 4, 2}


def test_keras_resnet_has_its_stride_first_and_biases() -> None:
    ours, kerases = (
        layers_of(get_architecture("resnet-50", **changes))
        for changes in ({}, {"stride_first": True, "use_bias": True})
    )
    for layers, first, second in ((ours, (1, 1), (2, 2)), (kerases, (2, 2), (1, 1))):
        assert (layers["block_3_reduce"].strides, layers["block_3_conv"].strides) == (first, second)
    assert kerases["block_3_conv"].use_bias
    assert not ours["block_3_conv"].use_bias


@pytest.mark.parametrize("name", SPECS)
def test_published_names_are_of_every_layer(name: str) -> None:
    spec = SPECS[name]
    for way in family_of(spec).published:
        layers = way.layers(spec)
        assert len(set(layers.values())) == len(layers), "no layer has two names"
        own = {variable.path.rpartition("/")[0] for variable in built(static_twin(name)).weights}
        assert own <= set(layers.values())
        others = set(layers.values()) - own
        assert all(layer.endswith("_routing") or "_se_" in layer for layer in others)
        spec.changed(**{key: value for key, value in way.conventions.items()})


@pytest.mark.parametrize("name", ["mnasnet-a1", "condconv-resnet-50-8e"])
def test_networks_with_the_same_variables_are_outlined_once(name: str) -> None:
    spec = SPECS[name]
    shapes = weight_shapes(spec)
    assert shapes == {variable.path: tuple(variable.shape) for variable in built(spec).weights}
    assert weight_shapes(spec.changed(padding="same", norm_epsilon=0.1, dropout_rate=0.5)) is shapes
