"""A task of a few lines gets decoding, batching, deadlines and errors of single images from the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import ImageSource, ModelInfo, RowAnswer
from condconv_serve.errors import InvalidParameter, UnsupportedImage
from condconv_serve.imaging import ImageDecoder
from condconv_serve.pipeline import ImagePipeline
from tests.contract.fronts import House
from tests.pictures import encode


@dataclass(frozen=True)
class Margin:
    """How far the best class is before the one of a given rank."""

    rank: int = 2

    def check(self, model: ModelInfo) -> None:
        if not 2 <= self.rank <= len(model.labels):
            raise InvalidParameter(f"rank must be from 2 to {len(model.labels)}, not {self.rank}.")

    def answer(self, row: RowAnswer, model: ModelInfo) -> float:
        ordered = np.sort(row.tensors["logits"])[::-1]
        return float(ordered[0] - ordered[self.rank - 1])


def picture(shade: int) -> ImageSource:
    return ImageSource(encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG"))


@pytest.fixture
async def pipeline() -> AsyncIterator[ImagePipeline]:
    house = House()
    house.free.set()
    with ThreadPoolExecutor(2) as threads:
        async with house.batcher, asyncio.timeout(20):
            yield ImagePipeline(house.plane, ImageDecoder(threads, max_pixels=10**6))


async def test_a_task_answers_each_image(pipeline: ImagePipeline) -> None:
    answered = await pipeline.run([picture(1), ImageSource(b"no image"), picture(2)], Margin())
    assert [result.prediction for result in answered.results] == [5.0, None, 5.0]
    assert [type(result.error) for result in answered.results] == [type(None), UnsupportedImage, type(None)]


async def test_a_task_refuses_what_the_model_can_not(pipeline: ImagePipeline) -> None:
    with pytest.raises(InvalidParameter, match="from 2 to 6, not 7"):
        await pipeline.run([picture(1)], Margin(7))
