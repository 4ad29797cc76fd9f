"""MobileNetV1 and V2, MnasNet and ResNet against outputs of public implementations and of plain references.

Small networks from made pixels in every run, published sizes from photographs in `make test-parity`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.nn import build_network, cost, get_architecture, give_values, outline
from condconv_serve.runtime.lowering import CPU, lower
from condconv_serve.store.bundle import open_bundle, read_weights
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from tests.golden import FAMILIES, needs_families
from tests.parity.families import FULL_SIZE, TINY, FamilyGolden, pixels_of
from tests.parity.seeded import waves

pytestmark = pytest.mark.tensorflow

LOGITS, ROUTING = 5e-5, 1e-5
"""Relative to the largest logit, and absolute."""
Outputs = tuple[NDArray[np.float32], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Subject:
    """An imported network, normalised pixels for it, and what it must answer."""

    golden: FamilyGolden
    network: Any
    pixels: NDArray[np.float32]
    manifest: Any

    def check(self, found: Outputs) -> None:
        expected = self.golden.stored
        assert np.abs(found[0] - expected["logits"]).max() < LOGITS * np.abs(expected["logits"]).max()
        assert (found[1] is not None) == ("routing" in expected)
        if found[1] is not None:
            assert np.abs(found[1] - expected["routing"]).max() < ROUTING


@pytest.fixture(
    scope="module",
    params=[
        *TINY,
        *(pytest.param(golden, marks=(pytest.mark.full_parity, needs_families)) for golden in FULL_SIZE),
    ],
    ids=str,
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    golden: FamilyGolden = request.param
    directory = tmp_path_factory.mktemp("golden")
    source = golden.write(directory)
    bundle = open_bundle(
        import_bundle(
            ImportRequest(source=source, architecture=golden.architecture, name="golden", overrides=golden.overrides),
            store=directory / "store",
        )
    )
    source.unlink()
    manifest = bundle.manifest
    spec, preprocessing = manifest.architecture, manifest.preprocessing
    architecture = get_architecture(spec.name, **{"num_classes": manifest.num_classes, **spec.overrides})
    network = outline(lambda: build_network(architecture, input_size=golden.spec["image_size"]))
    give_values(network, read_weights(bundle))
    pixels = pixels_of(golden.spec["image_size"]) if golden.directory == FAMILIES else waves()
    mean, std = (np.asarray(channels, np.float32) for channels in (preprocessing.mean, preprocessing.std))
    yield Subject(golden, network, (pixels - mean) / std, manifest)
    del network
    gc.collect()  # networks hold each other in circles


def outputs(computed: Any) -> Outputs:
    routing = list(computed["routing"].values())
    return np.asarray(computed["logits"]), np.stack(routing, axis=1) if routing else None


def test_keras_model_equals_the_reference(subject: Subject) -> None:
    subject.check(outputs(subject.network(subject.pixels, training=False)))


def test_tensorflow_lowering_equals_the_reference(subject: Subject) -> None:
    compute = tf.function(lower(subject.network, CPU).compute, autograph=False)
    subject.check(outputs(compute([tf.constant(subject.pixels)])))


def test_native_kernels_equal_the_reference_together_and_one_by_one(subject: Subject, native_lowering: Any) -> None:
    lowered = lower(subject.network, native_lowering)
    compute = tf.function(lowered.compute, autograph=False)
    together = outputs(compute([tf.constant(subject.pixels)]))
    rows = [outputs(compute([tf.constant(subject.pixels[i : i + 1])])) for i in range(len(subject.pixels))]
    alone = np.concatenate([row[0] for row in rows])
    weights = None if together[1] is None else np.concatenate([row[1] for row in rows if row[1] is not None])
    for resource in lowered.resources:
        resource.close()
    subject.check(together)
    subject.check((alone, weights))


def test_parameters_and_multiply_adds(subject: Subject) -> None:
    found, expected = cost(subject.network), subject.golden.spec
    assert found.parameters == expected["parameters"]
    # Ours has pooling, biases, residuals and swish besides, half of each.
    more = 0.02 if "efficientnet" in str(subject.golden) else 0.005
    assert found.multiply_adds == pytest.approx(expected["multiply_adds"], rel=more)


def test_preprocessing_is_as_published(subject: Subject) -> None:
    said, found = subject.golden.spec["preprocessing"], subject.manifest.preprocessing
    crop = found.to_domain().crop_share
    assert crop == pytest.approx(0.875, abs=0.01)
    match said:
        case "x / 127.5 - 1, RGB":
            assert (found.mean, found.std, found.transform) == ((127.5,) * 3, (127.5,) * 3, "central")
            assert (found.interpolation, crop) == ("bilinear", 0.875)
        case text if "103.939" in text:
            assert (found.mean, found.std) == ((123.68, 116.779, 103.939), (1.0,) * 3)
        case _:
            assert (found.mean, found.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
