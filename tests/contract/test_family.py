"""A family of some sixty lines gets bundles, engines, routing, cost, ablation and answers without a line of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from condconv_serve.domain import ImageSource, Label, RoutingOverrides, Row, ServedModel, Tensors, rows_of
from condconv_serve.domain.manifest import PreprocessingSpec, Provenance
from condconv_serve.errors import BundleError, ConfigurationError
from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.store import NewBundle, open_bundle, write_bundle
from condconv_serve.tasks.classification import Classify
from condconv_serve.telemetry.metrics import Metrics
from tests.contract import tiny_family
from tests.contract.fakes import FakeModels
from tests.contract.loader_suite import LoaderSuite
from tests.contract.tiny_family import FAMILY, TINY
from tests.pictures import encode
from tests.unit.store.samples import PLAN

pytestmark = pytest.mark.tensorflow

LABELS = tuple(Label(index, f"class {index}") for index in range(4))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    from condconv_serve.nn.families import register, unregister

    register(FAMILY)
    yield
    unregister(FAMILY)


@pytest.fixture(scope="module")
def network(randomise: Callable[[Any], Any]) -> Any:
    from condconv_serve.nn import build_network, get_architecture

    return randomise(build_network(get_architecture(TINY.name, num_classes=4)))


def write_tiny(network: Any, store: Path) -> Path:
    from condconv_serve.nn import get_architecture
    from condconv_serve.nn.families import to_manifest

    new = NewBundle(
        name="tiny",
        version="1",
        architecture=to_manifest(get_architecture(TINY.name, num_classes=4)),
        preprocessing=PreprocessingSpec(
            transform="pillow", image_size=32, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
        ),
        weights={variable.path: np.array(variable) for variable in network.weights},
        labels=LABELS,
        provenance=Provenance(source="tests", method="random"),
        licence="Apache-2.0",
        model_card="# Tiny\n",
    )
    return write_bundle(store, new)


@pytest.fixture(scope="module")
def bundle(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(network, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[ServedModel]:
    from condconv_serve.runtime.loading import load_model

    model = load_model(open_bundle(bundle), PLAN)
    yield model
    model.engine.close()


def rows(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def plain(network: Any, pixels: Any) -> tuple[Any, dict[str, Any]]:
    """What Keras computes: logits, and routing by block."""
    outputs = network((pixels.astype(np.float32) - 127) / 128, training=False)
    return np.asarray(outputs["logits"]), {name: np.asarray(value) for name, value in outputs["routing"].items()}


def test_a_family_is_small() -> None:
    assert len(Path(tiny_family.__file__).read_text().splitlines()) <= 65


def test_its_bundle_says_what_it_is(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.architecture.model_dump() == {"name": TINY.name, "num_classes": 4}


def test_it_is_loaded_and_described(model: ServedModel) -> None:
    assert (model.name, model.version, tuple(model.info.labels)) == ("tiny", "1", LABELS)
    assert (model.info.routing.blocks, model.info.routing.experts) == (("block", "classifier"), (3, 2))
    assert {output.name: output.shape for output in model.info.outputs} == {
        "logits": (4,),
        "routing": (2, 3),
        "features": (16,),
    }


def test_its_cost_is_counted(model: ServedModel) -> None:
    stem, routing, depthwise, norm = 3 * 3 * 3 * 8 + 8, 8 * 3 + 3, 3 * 9 * 8, 2 * 8
    project, classifier_routing, classifier = 3 * (8 * 16 + 16), 16 * 2 + 2, 2 * (16 * 4 + 4)
    assert model.info.cost.parameters == sum((stem, routing, depthwise, norm, project, classifier_routing, classifier))
    assert model.info.cost.multiply_adds is not None
    assert model.info.cost.multiply_adds > 8 * 8 * (27 * 8 + 9 * 8 + 8 * 16)


def test_its_engine_computes_what_keras_does(
    model: ServedModel, network: Any, assert_close: Callable[..., None]
) -> None:
    found = model.engine(rows(3))
    logits, routing = plain(network, rows(3))
    assert_close(found["logits"], logits, 1e-4)
    for block, weights in model.info.routing.split(found["routing"]).items():
        assert_close(weights, routing[block], 1e-4)


def test_its_experts_can_be_taken_away(bundle: Path, model: ServedModel, assert_close: Callable[..., None]) -> None:
    from condconv_serve.runtime.ablation_engine import AblationEngine
    from condconv_serve.runtime.loading import load_network

    ablation = AblationEngine(load_network(open_bundle(bundle)), model.info.preprocessing)
    weights = np.full((1, 2, 3), np.nan, np.float32)
    weights[0, 0, 1] = 0
    found = ablation(rows(1)[0], RoutingOverrides(weights, np.zeros((1, 2), bool)), stopped=lambda: False)
    assert found is not None
    served = model.engine(rows(1))
    for name in ("logits", "routing"):
        assert_close(found[name][0], served[name][0], 1e-4)
    assert found["routing"][1, 0, 1] == 0
    assert np.abs(found["logits"][1] - found["logits"][0]).max() > 1e-3
    ablation.close()


def test_it_is_verified_before_it_is_served(bundle: Path) -> None:
    from condconv_serve.offline.verify import verify_bundle

    verify_bundle(open_bundle(bundle), PLAN)


def test_weights_that_do_not_fit_are_named(network: Any) -> None:
    from condconv_serve.runtime.loading import set_weights

    with pytest.raises(BundleError, match="block_project/kernel is missing"):
        set_weights(network, {v.path: np.array(v) for v in network.weights if "project/kernel" not in v.path}, name="x")


def test_an_unknown_parameter() -> None:
    from condconv_serve.nn import get_architecture

    with pytest.raises(ConfigurationError, match="Unknown architecture parameter depth"):
        get_architecture(TINY.name, depth=3)


async def test_it_answers_photos(model: ServedModel, network: Any) -> None:
    async def run(model: ServedModel, batch: Sequence[Row]) -> Sequence[Tensors]:
        return rows_of(model.engine(np.stack(batch), 0))

    pictures = rows(2)
    metrics = Metrics(CollectorRegistry())
    batcher = Batcher(run, streams=1, max_batch_size=4, max_queue_rows=8, metrics=metrics)
    with ThreadPoolExecutor(1) as threads:
        async with batcher:
            plane = InferencePlane(FakeModels(model), batcher, metrics=metrics)
            pipeline = ImagePipeline(plane, ImageDecoder(threads, max_pixels=10**6))
            images = [ImageSource(encode(Image.fromarray(picture), "PNG")) for picture in pictures]
            answer = await pipeline.run(images, Classify(top_k=1))
    predictions = [result.prediction for result in answer.results]
    assert all(prediction is not None for prediction in predictions)
    best = [prediction.classes[0].index for prediction in predictions if prediction is not None]
    assert best == plain(network, pictures)[0].argmax(axis=1).tolist()
    assert [list(p.routing.by_block()) for p in predictions if p is not None] == [["block", "classifier"]] * 2


class TestLoading(LoaderSuite):
    """The real loader is held to what fakes are held to."""

    @pytest.fixture
    def load(self) -> ModelLoader:
        from condconv_serve.runtime.loading import load_model

        return load_model

    @pytest.fixture
    def bundle(self, network: Any, tmp_path: Path) -> Path:
        return write_tiny(network, tmp_path)
