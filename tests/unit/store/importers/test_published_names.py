"""Weights as other programs publish them: each name and layout, there and back, and files that Keras itself writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from safetensors.numpy import save_file

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import build_network, family_of, get_architecture, weight_shapes
from condconv_serve.nn.published import Published
from condconv_serve.runtime.loading import set_weights
from condconv_serve.store import open_bundle, read_labels, read_weights
from condconv_serve.store.importers import Upcycling, import_weights
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from condconv_serve.store.importers.numpy_file import read_npz

pytestmark = pytest.mark.tensorflow

NARROW = {"width_coefficient": 0.25}
NETWORKS = (
    *("mobilenet-v1", "mobilenet-v2", "mnasnet-a1", "resnet-50"),
    *("ssd300-mobilenet-v1", "ssdlite320-mobilenet-v2"),
)
TF_SLIM = ("slim", "object_detection", "face_api")
"""Whose names of variables are TF-Slim's."""
STATIC_WAYS = [
    pytest.param(name, way, id=f"{name}, {way.naming}")
    for name in NETWORKS
    for way in family_of(get_architecture(name)).published
    if way.layers(get_architecture(name))
]
CONDCONV = {
    "condconv-mobilenet-v1-8e": "keras",
    "condconv-mobilenet-v2-8e-wide": "condconv.pytorch",
    "condconv-mnasnet-a1-8e": "timm",
    "condconv-resnet-50-8e": "torchvision",
}
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
Tensors = dict[str, NDArray[Any]]


def random_weights(architecture: Any) -> Tensors:
    rng = np.random.default_rng(0)
    found = {path: rng.standard_normal(shape, np.float32) for path, shape in weight_shapes(architecture).items()}
    return {path: np.abs(value) if path.endswith("variance") else value for path, value in found.items()}


def to_published(weights: Tensors, way: Published, architecture: Any, *, flat: bool) -> Tensors:
    """The other way round than the importer."""
    theirs = {ours: published for published, ours in way.layers(architecture).items()}
    found: Tensors = {}
    for path, value in weights.items():
        layer, leaf = path.split("/")
        if way.layout == "pytorch":
            if leaf == "kernel":
                experts = value.ndim in (3, 5)
                axes: tuple[int, ...] = (
                    (1, 0) if value.ndim < 4 else (2, 3, 0, 1) if layer.endswith("_depthwise") else (3, 2, 0, 1)
                )
                axes = tuple(axis + 1 for axis in axes) if experts else axes
                value = value.transpose((0, *axes) if experts else axes)
                value = value.reshape(len(value), -1) if experts and flat else value
            name = NORM.get(leaf) if layer.endswith("_norm") else {"kernel": "weight"}.get(leaf, leaf)
            found[f"{theirs[layer]}.{name}"] = value
        elif way.naming in TF_SLIM:
            kind = "depthwise_weights" if layer.endswith("_depthwise") else "weights"
            bias = "biases" if way.naming != "face_api" or "predictor" in layer else "convolution_bn_offset"
            value = value[None, None] if path == "logits/kernel" else value
            found[f"{theirs[layer]}/{ {'kernel': kind, 'bias': bias}.get(leaf, leaf) }"] = value
        else:
            found[f"{theirs[layer]}/{leaf}"] = value.reshape(len(value), -1) if value.ndim in (3, 5) and flat else value
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def way_of(name: str, naming: str) -> Published:
    return next(way for way in family_of(get_architecture(name)).published if way.naming == naming)


def as_published(name: str, way: Published, **changes: Any) -> Any:
    return get_architecture(name, **{**NARROW, "num_classes": 7, **way.conventions, **changes})


@pytest.mark.parametrize(("name", "way"), STATIC_WAYS)
def test_static_networks_come_back(name: str, way: Published, tmp_path: Path) -> None:
    architecture = as_published(name, way)
    weights = random_weights(architecture)
    save_file(to_published(weights, way, architecture, flat=False), tmp_path / "w.safetensors")
    imported = import_weights(tmp_path / "w.safetensors", get_architecture(name, **NARROW))
    assert imported.published is way
    assert imported.architecture == architecture, "with the conventions of those networks, and seven classes"
    if way.bgr:
        weights["stem/kernel"] = weights["stem/kernel"][:, :, ::-1]
    assert_same(imported.weights, weights)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("name", "naming"), CONDCONV.items(), ids=CONDCONV)
def test_networks_with_experts_come_back(name: str, naming: str, flat: bool, tmp_path: Path) -> None:
    way = way_of(name, naming)
    architecture = as_published(name, way, num_experts=3)
    weights = random_weights(architecture)
    save_file(to_published(weights, way, architecture, flat=flat), tmp_path / "w.safetensors")
    asked = get_architecture(name, **NARROW, num_experts=3, num_classes=7)
    imported = import_weights(tmp_path / "w.safetensors", asked)
    assert imported.architecture == architecture
    assert_same(imported.weights, weights)


def test_conventions_give_way_to_what_is_asked_for(tmp_path: Path) -> None:
    way = way_of("mobilenet-v2", "torchvision")
    architecture = as_published("mobilenet-v2", way)
    save_file(to_published(random_weights(architecture), way, architecture, flat=False), tmp_path / "w.safetensors")
    given = {"norm_epsilon": 1e-3}
    asked = get_architecture("mobilenet-v2", **NARROW, **given)
    found = import_weights(tmp_path / "w.safetensors", asked, given=given).architecture
    assert (found.padding, found.norm_epsilon) == ("symmetric", 1e-3)


def test_a_classifier_without_a_bias(tmp_path: Path) -> None:
    way = way_of("mobilenet-v2", "condconv.pytorch")
    architecture = as_published("condconv-mobilenet-v2-8e", way, num_experts=2, classifier_bias=False)
    weights = random_weights(architecture)
    save_file(to_published(weights, way, architecture, flat=False), tmp_path / "w.safetensors")
    imported = import_weights(
        tmp_path / "w.safetensors",
        get_architecture("condconv-mobilenet-v2-8e", **NARROW, num_experts=2, num_classes=7),
    )
    assert imported.architecture == architecture
    assert "logits/bias" not in imported.weights


KERAS = {"mobilenet-v1": keras.applications.MobileNet, "mobilenet-v2": keras.applications.MobileNetV2}


@dataclass(frozen=True)
class Application:
    """A network as Keras Applications builds it, narrow, with weights; our own without them; and pixels for both."""

    name: str
    width: float
    theirs: Any
    ours: Any
    pixels: NDArray[np.float32]
    answers: Any


@pytest.fixture(scope="module", params=KERAS)
def application(request: pytest.FixtureRequest, randomise: Any) -> Application:
    name, width = request.param, {"mobilenet-v1": 0.25, "mobilenet-v2": 0.35}[request.param]
    theirs = KERAS[name](weights=None, alpha=width, input_shape=(32, 32, 3), classes=5, classifier_activation=None)
    randomise(theirs)
    pixels = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    ours = build_network(get_architecture(name, width_coefficient=width, num_classes=5), input_size=32)
    return Application(name, width, theirs, ours, pixels, np.reshape(theirs(pixels, training=False), (2, 5)))


@pytest.mark.parametrize("file", ["model.h5", "model.keras", "model.weights.h5", "old.h5"])
def test_what_keras_applications_save(application: Application, file: str, tmp_path: Path, assert_close: Any) -> None:
    name, theirs, ours = application.name, application.theirs, application.ours
    if file == "old.h5":
        write_legacy(
            theirs, tmp_path / file, rename={"predictions" if name == "mobilenet-v2" else "conv_preds": "Logits"}
        )
    elif file.endswith("weights.h5"):
        theirs.save_weights(tmp_path / file)
    else:
        theirs.save(tmp_path / file)
    imported = import_weights(tmp_path / file, get_architecture(name, width_coefficient=application.width))
    assert imported.published is not None
    assert imported.published.naming == "keras"
    assert imported.architecture == get_architecture(name, width_coefficient=application.width, num_classes=5)
    set_weights(ours, imported.weights, name=name)
    assert_close(ours(application.pixels, training=False)["logits"], application.answers, 1e-5)


def write_legacy(network: Any, file: Path, *, rename: dict[str, str]) -> None:
    """As Keras 2.0 wrote files: names as bytes, a group for each layer, another name for the last one."""
    with h5py.File(file, "w") as store:
        layers = {rename.get(layer.name, layer.name): layer for layer in network.layers}
        store.attrs["layer_names"] = np.asarray([name.encode() for name in layers])
        for name, layer in layers.items():
            group = store.create_group(name)
            names = [f"{name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = np.asarray([one.encode() for one in names])
            for one, weight in zip(names, layer.weights, strict=True):
                group.create_dataset(one, data=np.asarray(weight))


def test_layers_in_another_order_are_not_guessed(tmp_path: Path, randomise: Any) -> None:
    network = randomise(keras.applications.MobileNet(weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=5))
    write_legacy(network, tmp_path / "odd.h5", rename={"conv_pw_3": "conv_pw_5", "conv_pw_5": "conv_pw_3x"})
    with pytest.raises(ImportFailed, match="left over: conv_pw_3x/kernel"):
        import_weights(tmp_path / "odd.h5", get_architecture("mobilenet-v1", **NARROW))


@pytest.mark.parametrize("damage", ["a link", "a missing array", "no layers", "too many bytes"])
def test_damaged_legacy_files(damage: str, tmp_path: Path) -> None:
    from condconv_serve.store.importers.keras_file import read_keras

    with h5py.File(tmp_path / "w.h5", "w") as store:
        store.attrs["layer_names"] = [] if damage == "no layers" else [b"conv1"]
        group = store.create_group("conv1")
        group.attrs["weight_names"] = [b"conv1/kernel:0"]
        if damage == "a link":
            store["conv1/conv1/kernel:0"] = h5py.ExternalLink("other.h5", "/x")
        elif damage != "a missing array":
            store["conv1/conv1/kernel:0"] = np.zeros(1000, np.float32)
    says = {"no layers": "names no layer with weights", "too many bytes": "more than 100 bytes"}
    with pytest.raises(ImportFailed, match=says.get(damage, "holds no such thing, or only a link to another place")):
        read_keras(tmp_path / "w.h5", max_bytes=100 if damage == "too many bytes" else 10**6)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_slim_checkpoint(averaged: bool, tmp_path: Path) -> None:
    """With its background class, and what training keeps beside the variables."""
    way = way_of("mobilenet-v1", "slim")
    architecture = as_published("mobilenet-v1", way, num_classes=1001)
    weights = random_weights(architecture)
    tensors = to_published(weights, way, architecture, flat=False)
    kept: Tensors = {
        "global_step": np.asarray(7, np.int64),
        "MobilenetV1/Conv2d_0/weights/RMSProp": np.ones(3, np.float32),
    }
    if averaged:
        kept |= {f"{name}/ExponentialMovingAverage": value for name, value in tensors.items()}
        kept |= {name: value + 1 for name, value in tensors.items()}
    else:
        kept |= tensors
    names = sorted(kept)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(kept[name]) for name in names],
    )
    request = ImportRequest(
        source=tmp_path / "model.ckpt", architecture="mobilenet-v1", name="slim", overrides=dict(NARROW)
    )
    bundle = open_bundle(import_bundle(request, store=tmp_path / "store"))
    weights |= {path: weights[path][..., 1:] for path in ("logits/kernel", "logits/bias")}
    assert_same(dict(read_weights(bundle)), weights)
    manifest = bundle.manifest
    assert (manifest.num_classes, len(read_labels(bundle))) == (1000, 1000)
    assert manifest.provenance.origins is not None
    assert manifest.provenance.origins["classes"] == "without TF-Slim's class 0, the background"
    assert manifest.provenance.origins["transform"] == "usual with TF-Slim's names"
    assert manifest.provenance.weights == ("averaged" if averaged else "unmarked")
    assert (manifest.preprocessing.transform, manifest.preprocessing.crop_fraction) == ("central", 0.875)


@pytest.mark.parametrize("name", [*CONDCONV, "condconv-ssd300-mobilenet-v1-8e"])
def test_upcycled_networks_keep_every_kernel(name: str, tmp_path: Path) -> None:
    """Each expert is a copy, biases too; what the answers are is shown beside the goldens."""
    way = family_of(get_architecture(name)).published[0]
    target = get_architecture(name, **NARROW, num_experts=3)
    static = target.changed(**way.conventions, num_classes=7).static()
    weights = random_weights(static)
    save_file(to_published(weights, way, static, flat=False), tmp_path / "w.safetensors")
    found = import_weights(tmp_path / "w.safetensors", target, upcycling=Upcycling()).weights
    if way.bgr:
        weights["stem/kernel"] = weights["stem/kernel"][:, :, ::-1]
    for path, value in found.items():
        if "_routing/" in path:
            np.testing.assert_allclose(value, -np.log(2) if path.endswith("bias") else 0, rtol=1e-6)
        elif value.shape == weights[path].shape:
            np.testing.assert_array_equal(value, weights[path])
        else:
            assert len(value) == 3
            assert all(np.array_equal(expert, weights[path]) for expert in value)
    assert found.keys() - weights.keys() == {path for path in found if "_routing/" in path}


def test_a_face_detector_in_numpys_format(tmp_path: Path) -> None:
    way = way_of("ssd512-mobilenet-v1", "face_api")
    architecture = get_architecture(
        "ssd512-mobilenet-v1", **{**way.conventions, "width_coefficient": 0.1, "num_classes": 2}
    )
    weights = random_weights(architecture)
    published: dict[str, Any] = to_published(weights, way, architecture, flat=False)
    np.savez(tmp_path / "faces.npz", **published)
    request = ImportRequest(
        source=tmp_path / "faces.npz",
        architecture="ssd512-mobilenet-v1",
        name="faces",
        overrides={"width_coefficient": 0.1},
    )
    bundle = open_bundle(import_bundle(request, store=tmp_path / "store"))
    assert_same(dict(read_weights(bundle)), weights)
    manifest = bundle.manifest
    assert (manifest.task, manifest.num_classes, manifest.preprocessing.image_size) == ("detection", 2, 512)
    assert [label.label for label in read_labels(bundle)] == ["face", "background"]
    said = manifest.preprocessing
    assert (said.transform, said.interpolation, said.mean, said.std) == (
        "letterbox",
        "asymmetric",
        (127.5,) * 3,
        (127.5,) * 3,
    )
    assert manifest.provenance.assumed is not None
    assert {"labels", "transform"} <= set(manifest.provenance.assumed)
    assert get_architecture(**manifest.architecture.model_dump()) == architecture


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04", "can't be read as arrays of NumPy"),
        ({"a": np.array([{"b": 1}], dtype=object)}, "can't be read as arrays of NumPy: Object arrays"),
        ({"a": np.zeros(1000)}, "faces.npz holds 8128 bytes of weights; 1000 are allowed"),
    ],
)
def test_what_numpys_format_may_not_hold(content: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "faces.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.savez(file, **content)
    with pytest.raises(ImportFailed, match=says):
        read_npz(file, max_bytes=1000)


def test_names_of_nobody(tmp_path: Path) -> None:
    save_file({"encoder.0.weight": np.zeros((3, 3), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(
        ImportFailed, match=r"names no layer as published weights of resnet-50 do: Keras Applications' \(conv1_"
    ):
        import_weights(tmp_path / "w.safetensors", get_architecture("resnet-50"))


HINTS = {
    "another width": (
        "mobilenet-v2",
        {"width_coefficient": 0.5},
        "mobilenet-v2",
        {},
        "they look like --architecture mobilenet-v2 --override width_coefficient=0.5",
    ),
    "another family": (
        "resnet-50",
        NARROW,
        "mobilenet-v2",
        NARROW,
        "they look like --architecture resnet-50 --override width_coefficient=0.25",
    ),
    "of EfficientNets' kind": (
        "mnasnet-a1",
        NARROW,
        "efficientnet-b0",
        NARROW,
        "they look like --architecture mnasnet-a1 --override width_coefficient=0.25",
    ),
    "static": (
        "mobilenet-v1",
        {},
        "condconv-mobilenet-v1-8e",
        {},
        "they are those of its static twin mobilenet-v1: --upcycle makes experts of them",
    ),
    "static, in the width that was asked for": (
        "mobilenet-v1",
        NARROW,
        "condconv-mobilenet-v1-8e",
        NARROW,
        "they are those of its static twin mobilenet-v1: --upcycle makes experts of them",
    ),
    "static, in another width": (
        "mobilenet-v1",
        NARROW,
        "condconv-mobilenet-v1-8e",
        {},
        "they are those of its static twin mobilenet-v1 in another size: "
        "--override width_coefficient=0.25 --upcycle makes experts of them",
    ),
    "other experts": (
        "condconv-mobilenet-v1-8e",
        {**NARROW, "num_experts": 4},
        "condconv-mobilenet-v1-8e",
        NARROW,
        "they look like --architecture condconv-mobilenet-v1-8e --experts 4 --override width_coefficient=0.25",
    ),
    "a detector": (
        "ssd300-mobilenet-v1",
        NARROW,
        "mobilenet-v1",
        NARROW,
        "they look like --architecture ssd300-mobilenet-v1",
    ),
    "a static detector": (
        "ssdlite320-mobilenet-v2",
        NARROW,
        "condconv-ssdlite320-mobilenet-v2-8e",
        NARROW,
        "they are those of its static twin ssdlite320-mobilenet-v2: --upcycle makes experts of them",
    ),
    "other parts": (
        "condconv-mobilenet-v2-8e-wide",
        NARROW,
        "condconv-mobilenet-v2-8e",
        NARROW,
        "they look like --architecture condconv-mobilenet-v2-8e-wide --override width_coefficient=0.25",
    ),
}


@pytest.mark.parametrize(("name", "changes", "asked", "asked_changes", "says"), HINTS.values(), ids=HINTS)
def test_the_right_network_is_named(
    name: str, changes: dict[str, Any], asked: str, asked_changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    static = {"mobilenet-v1": "slim", "mobilenet-v2": "condconv.pytorch", "mnasnet-a1": "timm", "resnet-50": "keras"}
    static |= dict.fromkeys(("ssd300-mobilenet-v1", "ssdlite320-mobilenet-v2"), "object_detection")
    way = way_of(name, (static | CONDCONV)[name])
    architecture = get_architecture(name, **{**changes, **way.conventions})
    weights = {path: np.zeros(shape, np.float32) for path, shape in weight_shapes(architecture).items()}
    save_file(to_published(weights, way, architecture, flat=True), tmp_path / "w.safetensors")
    with pytest.raises(ImportFailed, match=r"The weights don't fit|names no layer") as caught:
        import_weights(tmp_path / "w.safetensors", get_architecture(asked, **asked_changes))
    by = "names" if name.startswith("ssd") else "shapes"
    assert str(caught.value).endswith(f" By their {by} {says}.")
