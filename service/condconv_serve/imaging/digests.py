"""Hashes of images as they came in: equal digests, equal rows of a model. The response cache finds answers by them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from condconv_serve.domain import ImageSource, PixelSource

_AT_ONCE = 256 * 1024
"""Bytes that are hashed on the event loop, which takes a fifth of a millisecond; more are hashed in a thread."""


async def digests_of(images: Sequence[ImageSource | PixelSource]) -> list[bytes | None]:
    """Hash images; None for what can't be an image. A megabyte takes less than a millisecond."""
    size = sum(len(image.data) if isinstance(image, ImageSource) else image.values.nbytes for image in images)
    return _digests(images) if size <= _AT_ONCE else await asyncio.to_thread(_digests, images)


def _digests(images: Sequence[ImageSource | PixelSource]) -> list[bytes | None]:
    return [_digest(image) for image in images]


def _digest(image: ImageSource | PixelSource) -> bytes | None:
    if isinstance(image, ImageSource):
        found = sha256(b"file\0")
        found.update(image.data)
        return found.digest()
    values = image.values
    if values.dtype not in (np.uint8, np.float32):  # the memory of others may hold addresses instead of numbers
        return None
    # Where the pixels lie is part of the answer, and nothing that is decoded says it.
    found = sha256(f"pixels\0{values.dtype.name} {values.shape} {image.placement}\0".encode())
    found.update(np.ascontiguousarray(values).data)
    return found.digest()
