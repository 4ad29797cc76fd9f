import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import keras
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.errors import BundleError
from condconv_serve.nn import build_network, get_architecture
from condconv_serve.routing.profile import profile_of
from condconv_serve.runtime import loading
from condconv_serve.runtime.loading import load_model, load_network, set_weights
from condconv_serve.store import Bundle, open_bundle, write_bundle
from tests.contract.fakes import even_layout
from tests.unit.store.samples import LABELS, PLAN, new_bundle

pytestmark = pytest.mark.tensorflow

ARCHITECTURE: dict[str, Any] = {
    "name": "efficientnet-lite0-condconv-4e",
    "num_classes": 3,
    "width_coefficient": 0.1,
    "depth_coefficient": 0.3,
}
ROUTER, EXPERTS = "block_4_routing/kernel", "block_5_project/kernel"
Weights = dict[str, NDArray[Any]]
BundleOf = Callable[..., Bundle]


@pytest.fixture(scope="module")
def network(randomise: Callable[[Any], Any]) -> Any:
    name, overrides = ARCHITECTURE["name"], {key: value for key, value in ARCHITECTURE.items() if key != "name"}
    return randomise(build_network(get_architecture(name, **overrides), input_size=64))


@pytest.fixture
def weights(network: Any) -> Weights:
    return {variable.path: np.array(variable) for variable in network.weights}


@pytest.fixture
def bundle_of(tmp_path: Path) -> BundleOf:
    def write(**changes: Any) -> Bundle:
        return open_bundle(write_bundle(tmp_path, new_bundle(**{"architecture": ARCHITECTURE} | changes)))

    return write


def test_a_loaded_model_computes_what_its_network_computes(
    network: Any, weights: Weights, bundle_of: BundleOf, assert_close: Callable[..., None]
) -> None:
    model = load_model(bundle_of(weights=weights), PLAN)
    assert (model.name, model.version) == ("small", "1")
    assert tuple(model.info.labels) == LABELS
    assert model.info.preprocessing.image_size == 64
    assert model.info.routing.blocks == tuple(f"block_{i}" for i in range(4, 8))
    assert model.info.routing.experts == (4,) * 4
    assert (model.computed_by.engine, model.computed_by.precision) == ("tensorflow", "float32")
    assert model.info.cost.parameters == sum(int(np.prod(v.shape)) for v in network.trainable_weights)
    assert model.info.model_card == "# Small\n\nNot for use.\n"
    assert model.info.manifest.architecture.model_dump() == ARCHITECTURE

    rows = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = model.engine(rows)
    expected = network((rows.astype(np.float32) - 127) / 128, training=False)
    assert_close(found["logits"], expected["logits"], 1e-4)
    assert_close(found["routing"], np.stack(list(expected["routing"].values()), axis=1), 1e-4)
    model.engine.close()


def test_no_weights_are_made_up_to_be_overwritten(
    weights: Weights, bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("random weights")

    bundle = bundle_of(weights=weights)
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", fail)
    network = load_network(bundle)
    for variable in network.weights:
        np.testing.assert_array_equal(variable, weights[variable.path], variable.path)
    pixels = np.ones((2, 64, 64, 3), np.float32)
    assert np.isfinite(network(pixels, training=True)["logits"]).all(), "dropout has a seed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({ROUTER: None}, f"{ROUTER} is missing."),
        ({"extra/kernel": np.zeros(3)}, "extra/kernel is not part of it."),
        ({ROUTER: np.zeros((8, 8))}, f"{ROUTER} is [8, 8] instead of [8, 4]."),
        ({"logits/bias": np.zeros(1)}, "logits/bias is [1] instead of [3]."),  # would be broadcast
        ({EXPERTS: None, "a": np.zeros(1)}, f"{EXPERTS} is missing; a is not part of it."),
    ],
)
def test_misfits_are_named(change: dict[str, Any], says: str, network: Any, weights: Weights) -> None:
    before = np.array(network.get_layer("stem").kernel)
    changed = {name: value for name, value in (weights | change).items() if value is not None}
    changed["stem/kernel"] = before + 1
    with pytest.raises(BundleError) as caught:
        set_weights(network, changed, name="small/1")
    assert str(caught.value) == f"small/1: the weights don't fit the architecture: {says}"
    np.testing.assert_array_equal(network.get_layer("stem").kernel, before, "nothing is assigned")


def test_many_misfits_are_counted(network: Any) -> None:
    with pytest.raises(BundleError) as caught:
        set_weights(network, {}, name="small/1")
    assert str(caught.value).count(" is missing") == 8
    assert str(caught.value).endswith(f" and {len(network.weights) - 8} more.")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": {"name": "resnet-51"}}, "small/1: Unknown architecture 'resnet-51'; known are "),
        (
            {"architecture": ARCHITECTURE | {"stem_filters": 8}},
            "small/1: Unknown architecture parameter stem_filters; known are ",
        ),
        (
            {"architecture": ARCHITECTURE | {"width_coefficient": "wide"}},
            "small/1: Architecture parameter width_coefficient must be a number, not 'wide'.",
        ),
        (
            {"architecture": ARCHITECTURE | {"num_classes": 4}},
            "small/1: the architecture has 4 classes, the manifest says 3.",
        ),
        ({"weights": {"stem/kernel": np.zeros(3, np.float32)}}, "small/1: the weights don't fit the architecture: "),
    ],
    ids=["architecture", "parameter", "value", "classes", "weights"],
)
def test_bundles_that_fit_no_network(changes: dict[str, Any], says: str, bundle_of: BundleOf) -> None:
    with pytest.raises(BundleError) as caught:
        load_model(bundle_of(**changes), PLAN)
    assert str(caught.value).startswith(says)


def test_a_profile_of_another_architecture_is_refused(weights: Weights, bundle_of: BundleOf) -> None:
    rng = np.random.default_rng(0)
    profile = profile_of(rng.random((30, 2, 3)), rng.integers(0, 3, 30), even_layout(2, 3))
    with pytest.raises(BundleError, match=r"the routing profile is of \(2, 3\).*has \(4, 4\)"):
        load_model(bundle_of(weights=weights, routing_profile=profile), PLAN)


@pytest.mark.parametrize("giant", [{"width_coefficient": 20}, {"num_experts": 64, "width_coefficient": 20}])
def test_a_manifest_that_asks_for_a_giant_gets_no_memory(
    giant: dict[str, Any], weights: Weights, bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = build_network

    def build_without_values(architecture: Any, **arguments: Any) -> Any:
        network = build(architecture, **arguments)
        assert all(variable._value is None for variable in network.weights), "memory was taken"
        return network

    monkeypatch.setattr(loading, "build_network", build_without_values)
    bundle = bundle_of(architecture=ARCHITECTURE | giant, weights=weights)
    with pytest.raises(BundleError, match="the weights don't fit the architecture: stem"):
        load_model(bundle, PLAN)


def test_weights_of_any_precision(weights: Weights, bundle_of: BundleOf) -> None:
    precisions = itertools.cycle([ml_dtypes.bfloat16, np.float16, np.float64])
    stored = {path: value.astype(next(precisions)) for path, value in weights.items()}
    network = loading.load_network(bundle_of(weights=stored))
    for variable in network.weights:
        np.testing.assert_array_equal(variable, stored[variable.path].astype(np.float32))
