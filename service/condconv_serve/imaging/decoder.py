"""Decodes the images of requests on its own threads, beside the event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from condconv_serve.deadline import ending_at
from condconv_serve.domain import MadeRow, ServedModel
from condconv_serve.errors import MissingImage, OutOfMemory
from condconv_serve.imaging.row import make_row


def model_row(data: bytes, model: ServedModel, *, max_pixels: int) -> MadeRow:
    """Turn an image file into a model's row. All code that needs a model's pixels calls this.

    The row is as `make_row` returns it, with its placement.

    Args:
        data: a whole file, in one of `ACCEPTED_FORMATS`.
        model: gives the preprocessing, and its own JPEG decoder if it has one.
        max_pixels: the most pixels that a header may announce.

    Raises:
        MissingImage: the file is empty.
        UnsupportedImage, ImageTooLarge, CorruptImage: as `decode_photo`.
        OutOfMemory: there is too little memory.
    """
    if not data:
        raise MissingImage("The image is empty.")
    try:
        return make_row(data, model.info.preprocessing, max_pixels=max_pixels, crop_jpeg=model.crop_jpeg)
    except MemoryError as error:
        raise OutOfMemory("There is too little memory to decode this image.", retry_after=5.0) from error


class ImageDecoder:
    """Turns image files into rows, as many at once as there are threads."""

    def __init__(self, threads: ThreadPoolExecutor, *, max_pixels: int) -> None:
        """Work on `threads`; images with more than `max_pixels` pixels are refused by their header."""
        self._threads = threads
        self._max_pixels = max_pixels

    async def decode(self, data: bytes, model: ServedModel, *, deadline: float) -> MadeRow:
        """Make a row, by `deadline` on the monotonic clock (seconds).

        Raises:
            DeadlineExceeded: it was not done in time. Other errors are those of `model_row`.
        """
        async with ending_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, model)

    def _decode(self, data: bytes, model: ServedModel) -> MadeRow:
        started = time.monotonic()
        made = model_row(data, model, max_pixels=self._max_pixels)
        return replace(made, seconds=time.monotonic() - started)
