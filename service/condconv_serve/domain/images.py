"""Images: as bytes that came in, as pixels, and as rows for a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TransformName = Literal["official", "pillow", "central", "stretch", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Pixels = NDArray[np.uint8]
"""RGB, uint8: a whole photo `[height, width, 3]`."""
Row = NDArray[np.generic]
"""RGB on the scale 0..255, `[image_size, image_size, 3]`: a photo as the network takes it, or several `[B, ...]`.

`Preprocessing.row_type` is its dtype; engines always take uint8, too."""
JpegCropper = Callable[[bytes, int, int, int], Pixels | None]
"""Decodes the square with the corner `left, top` and the side `side` of a JPEG; None if it can't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What happens to a photo before the network sees it.

    `transform` and `image_size` (pixels) are applied outside the graph and give a `Row`; `(x - mean) / std` per
    channel, on the scale 0..255, is applied inside.
    """

    transform: TransformName
    image_size: int
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    crop_padding: int = 32
    """The centre crop takes `image_size / (image_size + crop_padding)` of the short side, rounded to whole pixels."""
    crop_fraction: float | None = None
    """What `central` takes of the short side, instead; None: 0.875."""
    interpolation: Interpolation = "bicubic"
    """How `pillow` and `central` resize; `official` is always bicubic."""
    exact_decoding: bool = False
    """Whether the network sees exactly the pixels of the reference evaluation. Then large JPEGs are decoded at full
    size, not at a fraction that leaves enough pixels. With `official`, TensorFlow decodes JPEGs, and rows aren't
    rounded to whole levels.
    """

    @property
    def crop_share(self) -> float:
        """The share of the short side that the centre crop takes, before it is rounded."""
        if self.transform == "central":
            return 0.875 if self.crop_fraction is None else self.crop_fraction
        return self.image_size / (self.image_size + self.crop_padding)

    @property
    def row_type(self) -> type[np.uint8] | type[np.float32]:
        """What rows are made of."""
        return np.float32 if self.exact_decoding and self.transform == "official" else np.uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a row lies in its photo, in pixels of the upright photo at its full size.

    Attributes:
        photo_width: of the whole photo.
        photo_height: of the whole photo.
        left: where the row's left edge lies; below 0 if it lies outside.
        top: where its upper edge lies.
        width: from the row's left edge to its right one; they may lie outside, where a row is padded.
        height: from its upper edge to its lower one.
    """

    photo_width: int
    photo_height: int
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row, how long it took to make (seconds), and where it lies in its photo; None if it came as pixels."""

    row: Row
    seconds: float = 0.0
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class PixelSource:
    """One image as it came in: pixels that are already cropped and resized, and its sender's name for it.

    `values` is uint8 or float32 `[image_size, image_size, 3]`, RGB on the scale 0..255.
    """

    values: NDArray[np.generic]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as it came in: undecoded bytes, and the names that its sender gave it."""

    data: bytes
    filename: str | None = None
    id: str | None = None
