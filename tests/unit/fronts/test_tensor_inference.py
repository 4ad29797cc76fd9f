"""What tensor protocols share, over the real plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import ImageSource, PixelSource
from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import (
    DeadlineExceeded,
    InvalidParameter,
    MissingImage,
    ModelNotFound,
    NotReady,
    QueueFull,
    TooManyImages,
    UnsupportedImage,
)
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.tensor_inference import TensorInference, TensorRequest, inputs_of
from condconv_serve.imaging import ImageDecoder
from condconv_serve.pipeline import ImagePipeline
from tests.contract.fakes import model_info
from tests.contract.fronts import House
from tests.pictures import encode

Subject = tuple[House, TensorInference]


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    house = House(max_queue_rows=4)
    house.free.set()
    house.readiness.loaded()
    with ThreadPoolExecutor(2) as threads:
        images = ImagePipeline(house.plane, ImageDecoder(threads, max_pixels=10**6))
        async with house.batcher, asyncio.timeout(60):
            yield house, TensorInference(images, Gatekeeper(house.readiness, request_timeout=60.0), max_images=3)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)


def facts() -> RequestFacts:
    return RequestFacts(request_id="mine", trace=TraceContext.following(None))


def pixels(shade: float, dtype: type = np.uint8) -> PixelSource:
    return PixelSource(np.full((32, 32, 3), shade, dtype))


def photo(shade: int) -> ImageSource:
    return ImageSource(encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG"))


def request(*sources: Any, **options: Any) -> TensorRequest:
    return TensorRequest(sources=sources, **options)


def test_inputs() -> None:
    found = {spec.name: (spec.shape, spec.dtype) for spec in inputs_of(model_info())}
    assert found == {"image": ((), "bytes"), "pixels": ((32, 32, 3), "uint8")}


async def test_photos_and_pixels_are_answered_alike(subject: Subject) -> None:
    _, inference = subject
    noted = facts()
    by_photo = await inference.infer(noted, request(photo(1), photo(8)))
    by_pixels = await inference.infer(facts(), request(pixels(1), pixels(8, np.float32)))
    assert list(by_photo.tensors) == ["logits", "routing", "features", "probabilities", "label"], (
        "all, if none is named"
    )
    for name, values in by_photo.tensors.items():
        np.testing.assert_array_equal(values, by_pixels.tensors[name])
    assert (noted.model, noted.rows) == ("fake/1", 2)
    assert noted.seconds["decode"] > 0


async def test_only_what_is_asked_for_is_in_the_answer(subject: Subject) -> None:
    _, inference = subject
    answer = await inference.infer(facts(), request(pixels(3), outputs=("probabilities",)))
    assert list(answer.tensors) == ["probabilities"]
    assert answer.tensors["probabilities"].argmax() == 3


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (request(), MissingImage, "no rows"),
        (request(*[pixels(1)] * 4), TooManyImages, "4 rows; 3 are allowed"),
        (request(pixels(1), outputs=("boxes",)), InvalidParameter, "no output 'boxes'"),
        (request(pixels(1), model="other"), ModelNotFound, "other"),
        (request(pixels(1), priority="urgent"), InvalidParameter, "high, normal, low"),
        (request(pixels(1), timeout_ms=61_000), InvalidParameter, "at most 60000"),
        (request(ImageSource(b"no image")), UnsupportedImage, "^(?!Image 0)"),
        (request(pixels(1), ImageSource(b"no image"), pixels(2)), UnsupportedImage, "^Image 1 of 3: "),
        (request(pixels(1), pixels(256, np.float32)), InvalidParameter, "^Image 1 of 2: Pixels are on the scale"),
    ],
)
async def test_refusals(subject: Subject, asked: TensorRequest, error: type[Exception], message: str) -> None:
    _, inference = subject
    with pytest.raises(error, match=message):
        await inference.infer(facts(), asked)


async def test_a_deadline_of_the_protocol_and_one_of_the_request(subject: Subject) -> None:
    house, inference = subject
    house.free.clear()
    with pytest.raises(DeadlineExceeded):
        await inference.infer(facts(), request(pixels(1), timeout_ms=50))
    soon = Deadline(time.monotonic() + 0.05, by="caller")
    with pytest.raises(DeadlineExceeded):
        await inference.infer(facts(), request(pixels(1)), deadline=soon)
    house.free.set()


async def test_a_cancelled_request_leaves_the_queue(subject: Subject) -> None:
    house, inference = subject
    house.free.clear()
    first = asyncio.create_task(inference.infer(facts(), request(pixels(1))))
    await until(lambda: house.read("condconv_rows_in_flight") == 1)
    waiting = asyncio.create_task(inference.infer(facts(), request(pixels(2), pixels(3), pixels(4))))
    await until(lambda: house.batcher.submitted == 4)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    house.free.set()
    await first
    await inference.infer(facts(), request(pixels(5)))
    assert house.batches == [[1], [5]]


async def test_a_check_before_the_body(subject: Subject) -> None:
    house, inference = subject
    await inference.check(facts())
    await inference.check_unnamed(facts())
    with pytest.raises(ModelNotFound):
        await inference.check(facts(), model="other")
    house.free.clear()
    tasks = [asyncio.create_task(inference.infer(facts(), request(pixels(1))))]
    await until(lambda: house.batcher.submitted == 1 and house.read("condconv_queue_rows") == 0)  # in a batch
    tasks += [asyncio.create_task(inference.infer(facts(), request(pixels(1)))) for _ in range(4)]
    await until(lambda: house.batcher.submitted == 5)
    with pytest.raises(QueueFull):
        await inference.check(facts())
    with pytest.raises(QueueFull):
        await inference.check_unnamed(facts())
    house.free.set()
    await asyncio.gather(*tasks)
    house.models.served.clear()
    await inference.check_unnamed(facts())  # a model that a request names might come meanwhile
    house.readiness.failed("Broken.")
    for check in (lambda: inference.check(facts()), lambda: inference.check_unnamed(facts())):
        with pytest.raises(NotReady):
            await check()
