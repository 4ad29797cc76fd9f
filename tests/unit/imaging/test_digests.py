"""Equal digests mean equal rows, and different images never share one."""

from __future__ import annotations

import asyncio
import threading
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from condconv_serve.domain import ImageSource, PixelSource, Placement
from condconv_serve.imaging import digests
from condconv_serve.imaging.digests import digests_of

ROW = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
PLACEMENT = Placement(photo_width=4, photo_height=4, left=0, top=0, width=4, height=4)
MOVED = Placement(photo_width=4, photo_height=4, left=1, top=0, width=4, height=4)
IMAGES: dict[str, ImageSource | PixelSource] = {
    "a file": ImageSource(b"abc"),
    "another one": ImageSource(b"abd"),
    "an empty one": ImageSource(b""),
    "a large one": ImageSource(bytes(10**6)),
    "a file of pixels": ImageSource(ROW.tobytes()),
    "pixels": PixelSource(ROW),
    "other pixels": PixelSource(ROW + 1),
    "pixels in another shape": PixelSource(ROW.reshape(1, 4, 3)),
    "pixels as float32": PixelSource(ROW.astype(np.float32)),
    "the same memory as another type": PixelSource(np.frombuffer(ROW.tobytes(), np.float32)),
    "pixels that lie somewhere": PixelSource(ROW, placement=PLACEMENT),
    "pixels that lie elsewhere": PixelSource(ROW, placement=MOVED),
}


async def test_different_images_have_different_digests() -> None:
    found = await digests_of(list(IMAGES.values()))
    assert len(set(found)) == len(IMAGES)
    assert all(isinstance(digest, bytes) and len(digest) == 32 for digest in found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ImageSource(b"abc", filename="a.jpg", id="a"), ImageSource(b"abc", filename="b.jpg", id="b")),
        (PixelSource(ROW, id="a"), PixelSource(ROW.copy(), id="b")),
        (PixelSource(ROW), PixelSource(np.asfortranarray(ROW))),
        (PixelSource(ROW[::-1]), PixelSource(ROW[::-1].copy())),
        (ImageSource(bytes(10**6)), ImageSource(bytes(10**6))),
    ],
    ids=["file names", "pixel names", "memory order", "a view", "in a thread"],
)
async def test_equal_images_have_equal_digests(
    one: ImageSource | PixelSource, other: ImageSource | PixelSource
) -> None:
    first, second = await digests_of([one, other])
    (alone,) = await digests_of([one])
    assert first == second == alone


async def test_what_can_not_be_pixels_has_none() -> None:
    values = np.array([["a", object()]], dtype=object)
    assert await digests_of([PixelSource(values), PixelSource(ROW.astype(np.float64))]) == [None, None]


async def test_large_images_do_not_hold_up_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = threading.Event()

    def hashed(*data: bytes) -> Any:
        assert turned.wait(20), "the event loop waits, too"
        return sha256(*data)

    async def turn() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        turned.set()

    monkeypatch.setattr(digests, "sha256", hashed)
    turning = asyncio.create_task(turn())
    assert await digests_of([ImageSource(bytes(10**6))])
    await turning
