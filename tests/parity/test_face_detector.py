"""A face detector with real weights: its priors, predictions and boxes against those of face-api, its publisher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.domain import Engine, MadeRow, NativeUse, RowAnswer, ServedModel, Timings, rows_of
from condconv_serve.imaging import model_row
from condconv_serve.nn.ssd import predictions_of, priors_of
from condconv_serve.runtime.loading import load_model, load_network
from condconv_serve.store import Bundle, open_bundle
from condconv_serve.store.importers import Upcycling
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from condconv_serve.tasks.detection import Detect
from tests.golden import FAMILIES, needs_families
from tests.unit.store.samples import PLAN

pytestmark = [pytest.mark.tensorflow, pytest.mark.full_parity, needs_families]

SSD = FAMILIES / "ssd"
PHOTOS = ("astronaut", "hopper", "procession")
PREDICTIONS = 5e-5
"""Relative to the largest encoding or logit."""
PIXELS, SCORES = 1.0, 1e-3
NATIVE = replace(PLAN, native="on", native_use=NativeUse(state="used"))


@dataclass(frozen=True)
class Subject:
    """An imported bundle, loaded, and the photographs as its rows."""

    upcycled: bool
    bundle: Bundle
    model: ServedModel
    rows: dict[str, MadeRow]


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    with np.load(SSD / "face_ssd_mobilenetv1_golden.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module", params=[False, True], ids=["static", "upcycled"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    upcycled: bool = request.param
    bundle = open_bundle(
        import_bundle(
            ImportRequest(
                source=SSD / "face_ssd_mobilenetv1_weights.npz",
                architecture="condconv-ssd512-mobilenet-v1-8e" if upcycled else "ssd512-mobilenet-v1",
                name="faces",
                upcycling=Upcycling() if upcycled else None,
            ),
            store=tmp_path_factory.mktemp("store"),
        )
    )
    model = load_model(bundle, PLAN)
    rows = {
        photo: model_row((SSD / "photos" / f"{photo}.png").read_bytes(), model, max_pixels=10**7) for photo in PHOTOS
    }
    yield Subject(upcycled, bundle, model, rows)
    model.engine.close()


def test_the_rows_are_face_apis(subject: Subject, golden: dict[str, NDArray[Any]]) -> None:
    for photo, made in subject.rows.items():
        row = made.row.astype(np.float64)
        found = [row.mean(), row.std(), row[100, 200, 0], row[300, 100, 1], row[200, 380, 2]]
        np.testing.assert_allclose(found, golden[f"{photo}/input_check"], atol=1e-4)


def test_priors_and_predictions(subject: Subject, golden: dict[str, NDArray[Any]]) -> None:
    network = load_network(subject.bundle)
    if not subject.upcycled:
        assert sum(math.prod(variable.shape) for variable in network.weights) == 5_535_047
        assert subject.model.info.cost.multiply_adds == pytest.approx(3143e6, rel=0.005)
    np.testing.assert_allclose(priors_of(network), golden["priors"], atol=3e-7)
    rows = np.stack([made.row for made in subject.rows.values()]).astype(np.float32)
    found = predictions_of(network)((rows - 127.5) / 127.5, training=False)
    for name in ("box_encodings", "class_logits"):
        expected = np.stack([golden[f"{photo}/{name}"] for photo in PHOTOS])
        assert np.abs(np.asarray(found[name]) - expected).max() < PREDICTIONS * np.abs(expected).max()


@pytest.mark.parametrize(("threshold", "key"), [(0.5, "detections_05"), (0.1, "detections_01")])
def test_boxes_and_scores(threshold: float, key: str, subject: Subject, golden: dict[str, NDArray[Any]]) -> None:
    check(subject, subject.model.engine, golden, Detect(score_threshold=threshold), key)


def test_boxes_and_scores_of_native_kernels(
    subject: Subject, golden: dict[str, NDArray[Any]], native_lowering: Any
) -> None:
    model = load_model(subject.bundle, NATIVE)
    assert model.computed_by.native.state == "used"
    check(subject, model.engine, golden, Detect(score_threshold=0.1), "detections_01")
    model.engine.close()


def check(subject: Subject, engine: Engine, golden: dict[str, NDArray[Any]], task: Detect, key: str) -> None:
    """Each photograph's objects, in a batch and alone."""
    together = rows_of(engine(np.stack([made.row for made in subject.rows.values()])))
    for (photo, made), tensors in zip(subject.rows.items(), together, strict=True):
        for answer in (tensors, rows_of(engine(made.row[None]))[0]):
            timings = Timings(decode=0, queue=0, inference=0, total=0)
            row = RowAnswer(tensors=answer, timings=timings, batch_size=1, placement=made.placement)
            objects = task.answer(row, subject.model.info).objects
            expected = golden[f"{photo}/{key}"]
            boxes = [[one.box.ymin, one.box.xmin, one.box.ymax, one.box.xmax] for one in objects]
            assert np.shape(boxes) == expected[:, :4].shape
            assert np.abs(np.array(boxes) - expected[:, :4]).max() < PIXELS
            assert np.abs(np.array([one.score for one in objects]) - expected[:, 4]).max() < SCORES
            assert {one.label for one in objects} == {"face"}
