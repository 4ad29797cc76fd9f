"""Images: as bytes that came in, as pixels, and as rows for a network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TransformName = Literal["official", "pillow", "central", "stretch", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "asymmetric"]
"""Pillow's filters, and TensorFlow 1's bilinear resize: see `imaging.transform.asymmetric`."""
USUAL_CROP_PADDING = 32
USUAL_CROP_FRACTION = 0.875
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
    crop_padding: int | None = None
    """`official` and `pillow` take `image_size / (image_size + crop_padding)` of the short side, in whole pixels; None:
    32. Others don't look at it."""
    crop_fraction: float | None = None
    """What `central` takes of the short side; None: 0.875. Others don't look at it."""
    interpolation: Interpolation = "bicubic"
    """How photos are resized; `official` is always bicubic, and only `stretch` and `letterbox` can be asymmetric."""
    exact_decoding: bool = False
    """Whether the network sees exactly the pixels of the reference evaluation. Then large JPEGs are decoded at full
    size, not at a fraction that leaves enough pixels. With `official`, TensorFlow decodes JPEGs. With `official` and
    with asymmetric interpolation, rows aren't rounded to whole levels.
    """

    @property
    def padding(self) -> int:
        """`crop_padding`, or the usual one."""
        return USUAL_CROP_PADDING if self.crop_padding is None else self.crop_padding

    @property
    def crop_share(self) -> float:
        """The share of the short side that the centre crop takes, before it is rounded; 1 if there is no crop."""
        match self.transform:
            case "official" | "pillow":
                return self.image_size / (self.image_size + self.padding)
            case "central":
                return USUAL_CROP_FRACTION if self.crop_fraction is None else self.crop_fraction
            case "stretch" | "letterbox":
                return 1.0

    def makes_rows_like(self, other: Preprocessing) -> bool:
        """Whether photos become the same rows. Mean and standard deviation don't matter: they are in the graph."""
        one, another = (replace(p, crop_padding=p.padding, crop_fraction=p.crop_share) for p in (self, other))
        return replace(one, mean=another.mean, std=another.std) == another

    @property
    def official_decoding(self) -> bool:
        """Whether JPEGs are decoded, and photos cropped, in the very way of the official evaluation."""
        return self.exact_decoding and self.transform == "official"

    @property
    def row_type(self) -> type[np.uint8] | type[np.float32]:
        """What rows are made of."""
        asymmetric = self.exact_decoding and self.interpolation == "asymmetric"
        return np.float32 if self.official_decoding or asymmetric else np.uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a row (or other pixels) lies in its photo, in pixels of the upright photo at its full size.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What other versions of a model need that get copies of an image once it is answered, to be compared.

    Attributes:
        to: these versions.
        image: the file that the row was made of; a version that crops in another way makes its own row of it. None if
            the row came as pixels, or the file isn't at hand.
        is_pixels: whether the caller gave pixels, cropped and resized.
    """

    to: tuple[str, ...]
    image: bytes | None = None
    is_pixels: bool = False


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row, ready to be computed.

    Attributes:
        row: its pixels.
        seconds: how long it took to make.
        placement: where it lies in its photo; None if it came as pixels alone.
        copies: for other versions; None if they get none.
    """

    row: Row
    seconds: float = 0.0
    placement: Placement | None = None
    copies: Copies | None = None


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where one row of a request comes from.

    Attributes:
        make: makes the row when it is awaited, for instance by decoding an image. Room for the row is taken before.
        digest: a hash of the image's bytes: equal digests, equal rows of a model. None if nobody asked for it.
    """

    make: Callable[[], Awaitable[MadeRow]]
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class PixelSource:
    """One image as it came in: pixels that are already cropped and resized.

    Attributes:
        values: uint8 or float32 `[image_size, image_size, 3]`, RGB on the scale 0..255.
        id: its sender's name for it.
        placement: where the pixels lie in their photo; None if nobody knows.
    """

    values: NDArray[np.generic]
    id: str | None = None
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as it came in: undecoded bytes, and the names that its sender gave it."""

    data: bytes
    filename: str | None = None
    id: str | None = None
