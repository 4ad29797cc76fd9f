"""SSD detectors of any family: their maps, their experts, their parameters."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import ARCHITECTURES, build_network, cost, family_of, get_architecture, outline
from condconv_serve.nn.families import to_manifest
from condconv_serve.nn.ssd import (
    SSDSpec,
    detector_for,
    predictions_of,
    prior_boxes,
    priors_of,
    variances_of,
)

pytestmark = pytest.mark.tensorflow

DETECTORS = [name for name, spec in ARCHITECTURES.items() if isinstance(spec, SSDSpec)]


def built(spec: Any, size: int | None = None) -> Any:
    return outline(lambda: build_network(spec, input_size=size))


def detector(name: str, **overrides: Any) -> SSDSpec:
    return cast(SSDSpec, get_architecture(name, **overrides))


# Howard et al. (parameters) and Yang et al. (multiply-adds of both) for MobileNetV1, Sandler et al. for MobileNetV2.
@pytest.mark.parametrize(
    ("name", "anchors", "parameters", "published", "millions"),
    [
        ("ssd300-mobilenet-v1", 1917, 6_819_839, (6.8, 1230), 1237),
        ("condconv-ssd300-mobilenet-v1-8e", 1917, 43_788_127, (None, 1280), 1280),
        ("ssdlite320-mobilenet-v2", 2034, 4_500_543, (4.3, 800), 805),
        ("condconv-ssdlite320-mobilenet-v2-8e", 2034, 19_488_847, (None, None), 822),
    ],
)
def test_published_sizes(
    name: str, anchors: int, parameters: int, published: tuple[float | None, int | None], millions: int
) -> None:
    network = built(get_architecture(name))
    found = cost(network)
    assert found.parameters == parameters
    assert found.multiply_adds is not None
    assert round(found.multiply_adds / 1e6) == millions
    for ours, theirs, most in ((parameters, published[0], 0.05), (found.multiply_adds, published[1], 0.007)):
        assert theirs is None or ours / 1e6 == pytest.approx(theirs, rel=most)
    assert network.output["boxes"].shape == (None, anchors, 4)
    assert network.output["scores"].shape == (None, anchors, 90)
    assert priors_of(network).shape == (anchors, 4)


@pytest.mark.parametrize(
    ("backbone", "taps"),
    [
        ("mobilenet-v1", ("block_10_pointwise_activation", "block_12_pointwise_activation")),
        ("mobilenet-v2", ("block_13_expand_activation", "head_activation")),
        ("mnasnet-a1", ("block_12_expand_activation", "head_activation")),
        ("condconv-resnet-50-8e", ("block_12_activation", "block_15_activation")),
        ("efficientnet-lite0-condconv-4e", ("block_11_expand_activation", "head_activation")),
    ],
)
def test_any_family_is_tapped_where_its_widest_maps_end(backbone: str, taps: tuple[str, ...]) -> None:
    classifier = get_architecture(backbone, width_coefficient=0.25)
    spec = detector_for(classifier, num_classes=3, image_size=96)
    assert get_architecture(**json.loads(json.dumps(to_manifest(spec)))) == spec
    network = built(spec)
    for number, tap in enumerate(taps):
        predictor = network.get_layer(f"class_predictor_{number}_depthwise")
        assert predictor.input is network.get_layer(tap).output
    assert network.get_layer("box_predictor_0_anchors").output.shape == (None, 6 * 6 * 3, 4)
    # Weights of the classifier fit by path, but for its last layer.
    its = built(classifier, 96)
    own = {v.path: v.shape for v in its.weights if not v.path.startswith(("logits", "classifier"))}
    assert own.items() <= {v.path: v.shape for v in network.weights}.items()
    extras = {f"extra_{number}" for number in range(4)} if classifier.num_experts else set()
    assert set(network.output["routing"]) == set(its.output["routing"]) - {"classifier"} | extras


@pytest.mark.parametrize("name", [name for name in DETECTORS if name.startswith("condconv-")])
def test_the_static_twin(name: str) -> None:
    twin = detector(name.removeprefix("condconv-").removesuffix("-8e"))
    spec = detector(name)
    assert replace(spec.static(), name=twin.name, backbone=twin.backbone) == twin
    assert replace(spec.backbone.static(), name=twin.backbone.name) == twin.backbone  # type: ignore[type-var]


def test_experts_are_where_the_paper_has_them() -> None:
    network = built(get_architecture("condconv-ssd300-mobilenet-v1-8e", num_experts=2, width_coefficient=0.25), 64)
    with_experts = {layer.name for layer in network.layers if hasattr(layer, "num_experts")}
    assert with_experts == {
        *(f"block_{number}_{kind}" for number in range(5, 13) for kind in ("depthwise", "pointwise")),
        *(f"extra_{number}_{kind}" for number in range(4) for kind in ("reduce", "conv")),
    }
    routing = network.output["routing"]
    assert list(routing) == [*(f"block_{number}" for number in range(5, 13)), *(f"extra_{n}" for n in range(4))]
    assert {weights.shape for weights in routing.values()} == {(None, 2)}
    assert "logits" not in {layer.name for layer in network.layers}


def test_what_is_trained_can_be_had() -> None:
    spec = detector_for(
        get_architecture("mobilenet-v2", width_coefficient=0.1),
        num_classes=2,
        image_size=64,
        taps=["stride_8", "stride_16", "stride_32"],
        extras=[[8, 16, 2]],
        variances=[10, 10, 2, 2],
    )
    network = built(spec)
    inner = predictions_of(network)
    anchors = 8 * 8 * 3 + (4 * 4 + 2 * 2 + 1) * 6
    assert inner.output["box_encodings"].shape == (None, anchors, 4)
    assert inner.output["class_logits"].shape == (None, anchors, 3)
    assert variances_of(network) == (10, 10, 2, 2)
    np.testing.assert_array_equal(priors_of(network), prior_boxes([(8, 8), (4, 4), (2, 2), (1, 1)], spec.prior_boxes))


def test_a_detector_with_one_map() -> None:
    spec = detector("ssdlite", width_coefficient=0.1, num_classes=1, taps="stride_16", extras=[])
    assert built(spec, 64).output["scores"].shape == (None, 16 * 3, 1)
    assert get_architecture(**json.loads(json.dumps(to_manifest(spec)))) == spec


def test_the_manifest_says_what_differs() -> None:
    spec = detector("ssd300-mobilenet-v1", backbone="mobilenet-v2", width_coefficient=0.5, num_classes=3, head_kernel=3)
    assert to_manifest(spec) == {
        "name": "ssd300-mobilenet-v1",
        "backbone": "mobilenet-v2",
        "width_coefficient": 0.5,
        "num_classes": 3,
        "head_kernel": 3,
    }
    assert get_architecture(**to_manifest(spec)) == spec
    assert all(to_manifest(ARCHITECTURES[name]) == {"name": name} for name in DETECTORS)
    assert all(family_of(ARCHITECTURES[name]).task == "detection" for name in DETECTORS)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"backbone": "resnet"}, "Unknown architecture 'resnet'"),
        ({"backbone": 3}, "backbone must be a registered architecture, not 3"),
        ({"backbone": "ssd300-mobilenet-v1"}, "backbone must be a classifier; ssd300-mobilenet-v1 is none"),
        (
            {"depth": 3},
            "Unknown architecture parameter depth; .* known are also backbone, num_classes, image_size, taps",
        ),
        ({"num_experts": 4}, "mobilenet-v2 has no CondConv blocks"),
        ({"condconv_extras": True}, "condconv_extras needs a backbone with experts, and mobilenet-v2 has none"),
        ({"num_classes": 0}, "num_classes must be a whole number from 1"),
        ({"image_size": 16}, "image_size must be a whole number from 32"),
        ({"taps": []}, "needs a tap at least"),
        ({"taps": 4}, "taps must be names of layers, or stride_8, stride_16, stride_32; not 4"),
        ({"extras": [[1, 2]]}, "extras must be lists of three whole numbers"),
        ({"extras": [[8, 8, 4]]}, "strides of 1 or 2, not 4"),
        ({"extras": "none"}, "extras must be a list, not 'none'"),
        ({"extras": [[8, 8, 2]] * 11}, "at most 12 maps, not 13"),
        ({"head": "rcnn"}, "head must be ssd or ssdlite, not 'rcnn'"),
        ({"head_kernel": 2}, "head_kernel must be 1 or 3, not 2"),
        ({"extra_norm": 1}, "extra_norm must be false or true, not 1"),
        ({"scores": "tanh"}, "scores must be softmax or sigmoid, not 'tanh'"),
        (
            {"prior_boxes": [[[0.1, 1]]]},
            r"prior_boxes must have shapes for 6 maps \(taps and extra blocks\), not for 1",
        ),
        ({"prior_boxes": [[]]}, "must have 1 to 32 shapes for each map"),
        ({"prior_boxes": [[[0, 1]]]}, "must have 2 numbers from 0.001 to 1000 each"),
        ({"variances": [1, 2, float("nan"), 3]}, "must have 4 numbers from 0.001 to 1000 each"),
    ],
)
def test_impossible_changes_say_what_is_allowed(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        get_architecture("ssdlite320-mobilenet-v2", **overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"taps": ["stride_32", "stride_16"]}, "taps must name maps from fine to coarse, each once; stride_32, stride"),
        ({"taps": ["stride_16", "stride_16"]}, "taps must name maps from fine to coarse, each once"),
        ({"taps": ["nowhere"], "extras": []}, "no map called 'nowhere'; take one of stride_8, .* head_activation"),
        ({"image_size": 2048, "taps": ["stem_activation"], "extras": []}, "would have 3145728 prior boxes, and 200000"),
    ],
)
def test_maps_that_cannot_be(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        built(get_architecture("ssdlite320-mobilenet-v2", width_coefficient=0.1, **overrides))


def test_a_detector_is_made_for_a_classifier_only() -> None:
    with pytest.raises(ConfigurationError, match="backbone must be a classifier"):
        detector_for(get_architecture("ssdlite"), num_classes=2)
    with pytest.raises(ConfigurationError, match="mobilenet-v2 is no SSD detector"):
        detector_for(get_architecture("mobilenet-v1"), num_classes=2, detector="mobilenet-v2")
