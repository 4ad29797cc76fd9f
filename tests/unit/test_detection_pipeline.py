"""From photos to boxes: a rectangle that was drawn in a photo comes back in pixels of the upright photo."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from condconv_serve.domain import (
    BOXES,
    ROUTING,
    SCORES,
    Box,
    Detection,
    Engine,
    ImageSource,
    PixelSource,
    Preprocessing,
    Row,
    ServedModel,
    Tensors,
    rows_of,
)
from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.open_request import RowBatcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.tasks.detection import Detect
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import (
    LAYOUT,
    ColourDetector,
    FakeModels,
    FunctionEngine,
    detector_info,
    served_model,
)
from tests.pictures import oriented

SIZE = 64
SHAPES = {"small": (70, 61), "wide": (640, 160), "tall": (160, 640), "huge": (805, 603)}


def find_green(rows: Row, stream: int) -> Tensors:
    """One box around what is green, more exact than the row's pixels."""
    boxes = []
    for row in rows:
        green = np.clip(row[..., 1].astype(float) - row[..., 0], 0, None)
        edges = []
        for axis in (1, 0):
            profile = green.sum(axis=axis)
            extent = profile.sum() / np.median(profile[profile > profile.max() / 2])
            centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
            edges.append(((centre - extent / 2) / len(profile), (centre + extent / 2) / len(profile)))
        (top, bottom), (left, right) = edges
        boxes.append([[top, left, bottom, right]])
    scores = np.zeros((len(rows), 1, 3), np.float32)
    scores[..., 1] = 0.9
    return {
        BOXES: np.array(boxes, np.float32),
        SCORES: scores,
        ROUTING: np.full((len(rows), *LAYOUT.shape), 0.5, np.float32),
    }


def detector(engine: Engine, **preprocessing: Any) -> ServedModel:
    given: dict[str, Any] = {"image_size": SIZE, "interpolation": "bilinear"} | preprocessing
    return served_model(replace(detector_info(), preprocessing=Preprocessing(**given)), engine)


async def detect(
    model: ServedModel, *images: ImageSource | PixelSource, task: Detect | None = None, metrics: Metrics | None = None
) -> list[Detection]:
    async def run(model: ServedModel, rows: Sequence[Row]) -> list[Tensors]:
        return rows_of(model.engine(np.stack(rows), 0))

    metrics = metrics or Metrics(CollectorRegistry())
    with ThreadPoolExecutor(1) as threads:
        batcher: RowBatcher = Batcher(run, streams=1, max_queue_rows=8, max_batch_size=4, metrics=metrics)
        async with batcher:
            plane = InferencePlane(FakeModels(model), batcher, metrics=metrics)
            decoder = ImageDecoder(threads, max_pixels=10**7)
            pipeline = ImagePipeline(plane, decoder, count_objects=metrics.count_objects)
            answered = await pipeline.run(images, task or Detect())
    assert all(result.error is None for result in answered.results)
    return [result.prediction for result in answered.results if result.prediction is not None]


def drawn(shape: tuple[int, int], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    photo = np.full((shape[1], shape[0], 3), 90, np.uint8)
    left, top, right, bottom = box
    photo[top:bottom, left:right] = (90, 250, 90)
    return photo


@pytest.mark.parametrize("transform", ["stretch", "letterbox"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_rectangle_in_jpegs_of_all_orientations(shape: str, transform: str) -> None:
    width, height = SHAPES[shape]
    box = (width // 10, height * 3 // 10, width * 6 // 10, height * 9 // 10)
    photos = [
        ImageSource(oriented(drawn((width, height), box), orientation, "JPEG", quality=95, subsampling=0))
        for orientation in range(1, 9)
    ]
    found = await detect(detector(FunctionEngine(find_green), transform=transform), *photos)
    assert len(found) == 8
    for one in found:
        assert (one.width, one.height) == (width, height)
        (only,) = one.objects
        edges = np.array([only.box.xmin, only.box.ymin, only.box.xmax, only.box.ymax])
        longest = np.array([width, height] * 2) if transform == "stretch" else max(width, height)
        assert (np.abs(edges - box) <= longest / SIZE * 0.12 + 0.5).all(), (edges, box)
        shares = only.box_normalized
        np.testing.assert_allclose(
            [shares.xmin * width, shares.ymin * height, shares.xmax * width, shares.ymax * height], edges
        )


async def test_patches_of_colour_in_a_letterbox() -> None:
    """The photo is the upper half of 8 x 8 patches, each 40 pixels of the photo wide."""
    photo = np.full((160, 320, 3), 90, np.uint8)
    photo[40:80, 280:320] = (255, 0, 0)
    photo[120:160, 0:40] = (0, 0, 255)
    model = detector(ColourDetector(), transform="letterbox", interpolation="nearest")
    (found,) = await detect(model, ImageSource(oriented(photo, 6, "PNG")))
    assert [(one.label, one.box) for one in found.objects] == [
        ("red", Box(280, 40, 320, 80)),
        ("blue", Box(0, 120, 40, 160)),
    ]


async def test_pixels_with_and_without_a_placement() -> None:
    """Pixels that the library made of a photo know where they lie; those of others are the photo."""
    row = np.full((SIZE, SIZE, 3), 90, np.uint8)
    row[8:24, 16:32] = (90, 250, 90)
    model = detector(FunctionEngine(find_green), transform="stretch")
    photo = oriented(drawn((640, 320), (160, 40, 320, 120)), 1, "PNG")
    bare, whole = await detect(model, PixelSource(row), ImageSource(photo))
    assert (bare.width, bare.height) == (SIZE, SIZE)
    assert (whole.width, whole.height) == (640, 320)
    for one, scale in ((bare, (1, 1)), (whole, (10, 5))):
        box = one.objects[0].box
        np.testing.assert_allclose([box.xmin, box.xmax], np.array([16, 32]) * scale[0], atol=0.5)
        np.testing.assert_allclose([box.ymin, box.ymax], np.array([8, 24]) * scale[1], atol=0.5)


async def test_objects_are_counted_as_they_are_returned() -> None:
    row = np.zeros((SIZE, SIZE, 3), np.uint8)
    row[:8, :24] = (255, 0, 0)
    row[8:16, :8] = (0, 0, 140)
    nothing, metrics = np.zeros_like(row), Metrics(CollectorRegistry())
    model = detector(ColourDetector(), transform="stretch")

    def read(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"condconv_{name}", {"model": model.name, **labels})

    await detect(model, PixelSource(row), PixelSource(nothing), metrics=metrics)
    assert (read("detections_count"), read("detections_sum")) == (2, 4)
    assert (read("detections_bucket", le="0.0"), read("detections_bucket", le="3.0")) == (1, 1)
    assert (read("detection_score_count"), read("detection_score_bucket", le="0.6")) == (4, 1)
    await detect(model, PixelSource(row), task=Detect(score_threshold=0.9, max_detections=2), metrics=metrics)
    assert (read("detections_count"), read("detections_sum")) == (3, 6)
