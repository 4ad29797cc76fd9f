"""A static network with experts: it must compute what it computed before."""

import dataclasses
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from condconv_serve.errors import ConfigurationError, ImportFailed
from condconv_serve.nn import ARCHITECTURES, build_network, get_architecture
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import open_bundle, read_weights
from condconv_serve.store.importers import Upcycling, import_weights
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from condconv_serve.store.importers.upcycle import static_twin, upcycle
from tests.contract.narrow_family import CONDCONV, LITE, LITE_CONDCONV, STATIC
from tests.unit.store.importers.naming import official_tensors, timm_tensors
from tests.unit.store.samples import PLAN

pytestmark = pytest.mark.tensorflow

TWINS = {"efficientnet-condconv-b0-4e": "efficientnet-b0", "efficientnet-lite0-condconv-4e": "efficientnet-lite0"}
NARROW_TWINS = {CONDCONV.name: STATIC.name, LITE_CONDCONV.name: LITE.name}
IMAGENET = (123.675, 116.28, 103.53)
MEANS = {
    STATIC.name: {"official": IMAGENET, "timm": IMAGENET, "keras": IMAGENET},
    LITE.name: {"official": (127,) * 3, "timm": (127.5,) * 3, "keras": (127,) * 3},
}
EXPERTS = {"official": 4, "timm": 3, "keras": 8}


@pytest.fixture(scope="module", params=NARROW_TWINS)
def pair(request, narrow_family, randomise):
    """A CondConv architecture and a static network of the same shape, with weights."""
    static = build_network(get_architecture(NARROW_TWINS[request.param], num_classes=6))
    return request.param, randomise(static)


@pytest.fixture(scope="module", params=EXPERTS)
def naming(request):
    """Whose names the static weights bear."""
    return request.param


@pytest.fixture(scope="module")
def bundle(pair, naming, tmp_path_factory):
    """A bundle of the CondConv architecture, of as many experts as go with the naming."""
    architecture, network = pair
    directory = tmp_path_factory.mktemp("upcycled")
    return upcycled(write(network, naming, directory), architecture, directory / "store", experts=EXPERTS[naming])


def write(network, naming, directory):
    if naming == "keras":
        network.save_weights(directory / "static.weights.h5")
        return directory / "static.weights.h5"
    tensors = official_tensors(network) if naming == "official" else timm_tensors(network)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / "static.safetensors")
    return directory / "static.safetensors"


def upcycled(source, architecture, store, *, noise=0.0, experts=4, **overrides):
    request = ImportRequest(
        source=source,
        architecture=architecture,
        name="upcycled",
        overrides={"num_experts": experts, **overrides},
        upcycling=Upcycling(noise=noise),
    )
    return open_bundle(import_bundle(request, store=store))


def rows_and_answers(bundle, network):
    """Answers of the bundle's engine, and of the static network, to the same rows."""
    rows = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    model = load_model(bundle, PLAN)
    found = model.engine(rows)
    model.engine.close()
    mean, std = (np.array(v, np.float32) for v in (model.info.preprocessing.mean, model.info.preprocessing.std))
    return found, np.asarray(network((rows - mean) / std, training=False)["logits"])


def test_it_computes_what_the_static_network_computes(bundle, naming, pair, assert_close):
    experts, network = EXPERTS[naming], pair[1]
    found, expected = rows_and_answers(bundle, network)
    assert_close(found["logits"], expected, 1e-5)
    assert found["routing"].shape == (3, 2, experts)
    np.testing.assert_allclose(found["routing"], 1 / experts, rtol=1e-6)
    assert bundle.manifest.num_classes == 6
    assert bundle.manifest.provenance.method.endswith(f"became {experts} experts, all alike")
    assert bundle.manifest.architecture.overrides.get("num_experts", 4) == experts


def test_any_layers_get_experts(pair, tmp_path, assert_close):
    network, static = pair[1], NARROW_TWINS[pair[0]]
    bundle = upcycled(write(network, "timm", tmp_path), static, tmp_path, condconv="classifier,head,block_0")
    assert bundle.manifest.architecture.model_dump() == {
        "name": static,
        "num_classes": 6,
        "num_experts": 4,
        "condconv": ["block_0", "head", "classifier"],
    }
    found, expected = rows_and_answers(bundle, network)
    assert_close(found["logits"], expected, 1e-5)
    assert found["routing"].shape == (3, 3, 4)


def test_experts_are_copies(pair):
    architecture, network = pair
    target = get_architecture(architecture, num_classes=6)
    static = {variable.path: np.array(variable) for variable in network.weights}
    weights = upcycle(static, target)
    assert {path: value.shape for path, value in weights.items()} == {
        variable.path: tuple(variable.shape) for variable in build_network(target).weights
    }
    for path, value in weights.items():
        if "_routing/" in path:
            expected = -math.log(3) if path.endswith("bias") else 0
            np.testing.assert_allclose(value, expected, rtol=1e-7)
        elif value.ndim == 5:
            assert all(np.array_equal(expert, static[path]) for expert in value)
        else:
            np.testing.assert_array_equal(value, static[path])


def test_noise_makes_experts_differ_but_not_the_answers(pair, tmp_path, assert_close):
    architecture, network = pair
    bundle = upcycled(write(network, "timm", tmp_path), architecture, tmp_path / "store", noise=0.3)
    found, expected = rows_and_answers(bundle, network)
    assert_close(found["logits"], expected, 1e-5)
    weights = read_weights(bundle)
    kernel = weights["block_3_expand/kernel"]
    mean = kernel.mean(axis=0)
    np.testing.assert_allclose(mean, np.array(network.get_layer("block_3_expand").kernel), atol=1e-6)
    assert (kernel - mean).std() == pytest.approx(0.3 * mean.std(), rel=0.05)
    assert "differing by 0.3" in bundle.manifest.provenance.method


def test_noise_can_be_repeated(pair):
    architecture, network = pair
    target = get_architecture(architecture)
    static = {variable.path: np.array(variable) for variable in network.weights}
    first, again = (upcycle(static, target, noise=0.1)["block_2_project/kernel"] for _ in range(2))
    other = upcycle(static, target, noise=0.1, seed=1)["block_2_project/kernel"]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_half_precision_is_kept(pair):
    architecture, network = pair
    static = {variable.path: np.array(variable).astype(np.float16) for variable in network.weights}
    weights = upcycle(static, get_architecture(architecture), noise=0.1)
    assert weights["block_2_project/kernel"].dtype == np.float16


def test_pixels_are_normalised_as_for_the_static_network(bundle, naming, pair):
    assert bundle.manifest.preprocessing.mean == MEANS[NARROW_TWINS[pair[0]]][naming]


def test_the_wrong_static_network(pair, tmp_path):
    architecture, network = pair
    other = next(name for name in NARROW_TWINS if name != architecture)
    with pytest.raises(ImportFailed, match=f"don't fit the static twin of {other}: ") as caught:
        import_weights(write(network, "timm", tmp_path), get_architecture(other), upcycling=Upcycling())
    assert f"By their shapes they look like --architecture {NARROW_TWINS[architecture]}." in str(caught.value)


def test_experts_already(narrow_family, tmp_path):
    target = get_architecture(CONDCONV.name)
    source = write(build_network(target), "timm", tmp_path)
    with pytest.raises(ImportFailed, match="they have experts already: import them without --upcycle"):
        import_weights(source, target, upcycling=Upcycling())


def test_a_static_source_without_upcycling(pair, tmp_path):
    architecture, network = pair
    with pytest.raises(
        ImportFailed, match=f"its static twin {NARROW_TWINS[architecture]}: --upcycle makes experts of them"
    ):
        import_weights(write(network, "timm", tmp_path), get_architecture(architecture))


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite0"])
def test_a_static_target(name):
    with pytest.raises(ImportFailed, match=f"^{name} has no experts; upcycling needs"):
        static_twin(get_architecture(name))
    with pytest.raises(ConfigurationError, match="has no CondConv blocks"):
        get_architecture(name, num_experts=4)


def test_one_expert_is_too_few():
    with pytest.raises(ImportFailed, match=r"has 1 experts; .* two experts at least"):
        static_twin(get_architecture("efficientnet-condconv-b0-4e", num_experts=1))


@pytest.mark.parametrize("noise", [-0.1, 1.5, math.nan])
def test_impossible_noise(noise):
    with pytest.raises(ImportFailed, match="The noise must be from 0 to 1"):
        upcycle({}, get_architecture("efficientnet-condconv-b0-4e"), noise=noise)


def test_the_twin_is_the_registered_one():
    for conditional, static in TWINS.items():
        twin = static_twin(get_architecture(conditional))
        assert dataclasses.replace(twin, name=static) == ARCHITECTURES[static]
