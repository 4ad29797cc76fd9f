"""Pixels -> one row: crop or pad, and resize, in the ways in which published weights were evaluated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condconv_serve.domain import Interpolation, Pixels, Preprocessing, Row
from condconv_serve.imaging.decode import SufficientSize
from condconv_serve.imaging.placement import central_square, centre_square, fitted

_CHANNELS = 3


Photo = Pixels | Image.Image


def transform(photo: Photo, preprocessing: Preprocessing) -> Row:
    """Crop, stretch or pad a photo to the network's row. `place_row` says where in the photo that lies.

    Args:
        photo: an RGB image, or uint8 `[H, W, 3]`, of any size.
        preprocessing: which transform, its size and its crop.

    Returns:
        `[image_size, image_size, 3]`, of the preprocessing's `row_type`.
    """
    size, padding, interpolation = preprocessing.image_size, preprocessing.padding, preprocessing.interpolation
    match preprocessing.transform:
        case "official" if preprocessing.row_type is np.float32:
            return official_float(photo, image_size=size, crop_padding=padding)
        case "official":
            return official(photo, image_size=size, crop_padding=padding)
        case "pillow":
            return pillow(photo, image_size=size, crop_padding=padding, interpolation=interpolation)
        case "central":
            share = preprocessing.crop_share
            return central(photo, image_size=size, crop_share=share, interpolation=interpolation)
        case "stretch" | "letterbox" if interpolation == "asymmetric":
            exact = asymmetric(photo, image_size=size, padded=preprocessing.transform == "letterbox")
            return exact if preprocessing.row_type is np.float32 else np.rint(exact, out=exact).astype(np.uint8)
        case "stretch":
            return stretch(photo, image_size=size, interpolation=interpolation)
        case "letterbox":
            return letterbox(photo, image_size=size, interpolation=interpolation)


# A reduced photo keeps this many lines for each line of the row, so that the resize still has a choice.
_SPARE_LINES = 1.4


def sufficient_size(preprocessing: Preprocessing) -> SufficientSize | None:
    """Say how small `decode` may make a photo; None if it may not reduce it at all."""
    if preprocessing.exact_decoding:
        return None
    side = math.ceil(_SPARE_LINES * preprocessing.image_size / preprocessing.crop_share)
    # Where the photo is padded, the row has no more lines than the long side needs.
    return SufficientSize(long=side) if preprocessing.transform == "letterbox" else SufficientSize(short=side)


def official(photo: Photo, *, image_size: int, crop_padding: int) -> Pixels:
    """Crop and resize as the official evaluation does, rounded to whole levels.

    Args:
        photo: as in `transform`.
        image_size: side of the result.
        crop_padding: the crop takes `image_size / (image_size + crop_padding)` of the short side.

    Returns:
        uint8 `[image_size, image_size, 3]`; bicubic overshoot is clipped.
    """
    exact = official_float(photo, image_size=image_size, crop_padding=crop_padding)
    return np.clip(np.rint(exact, out=exact), 0, 255, out=exact).astype(np.uint8)


def official_float(photo: Photo, *, image_size: int, crop_padding: int) -> NDArray[np.float32]:
    """Crop and resize as the official evaluation does, before rounding.

    This is TensorFlow 1's `resize_bicubic`, bit for bit: four taps however much the photo shrinks, so without
    antialiasing.

    Args:
        photo: as in `transform`.
        image_size: side of the result.
        crop_padding: as in `official`.

    Returns:
        float32 `[image_size, image_size, 3]`, about 0..255; edges overshoot by some tens.
    """
    crop = np.ascontiguousarray(_centre_crop(photo, image_size, crop_padding))
    side = crop.shape[0]
    index, weight = _bicubic_taps(side, image_size)
    rows = _blend(crop.reshape(side, side * _CHANNELS), index, weight[..., None], axis=0)
    # One flat axis of columns and channels: NumPy gathers single numbers much faster than triples.
    flat_index = (index[..., None] * _CHANNELS + np.arange(_CHANNELS)).reshape(len(index), -1)
    flat_weight = np.repeat(weight, _CHANNELS, axis=1)
    return _blend(rows, flat_index, flat_weight, axis=1).reshape(image_size, image_size, _CHANNELS)


def pillow(photo: Photo, *, image_size: int, crop_padding: int, interpolation: Interpolation = "bicubic") -> Pixels:
    """Take the official centre crop, but resize with Pillow, which antialiases.

    Args:
        photo: as in `transform`.
        image_size: side of the result.
        crop_padding: as in `official`.
        interpolation: Pillow's filter.

    Returns:
        uint8 `[image_size, image_size, 3]`.
    """
    crop = _centre_crop(photo, image_size, crop_padding)
    image = crop if isinstance(crop, Image.Image) else Image.fromarray(np.ascontiguousarray(crop))
    return np.asarray(image.resize((image_size, image_size), Image.Resampling[interpolation.upper()]))


def central(
    photo: Photo, *, image_size: int, crop_share: float = 0.875, interpolation: Interpolation = "bilinear"
) -> Pixels:
    """Resize a centre crop whose edges lie anywhere between pixels, with Pillow, which antialiases.

    Args:
        photo: as in `transform`.
        image_size: side of the result.
        crop_share: of the short side.
        interpolation: Pillow's filter.

    Returns:
        uint8 `[image_size, image_size, 3]`.
    """
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(np.ascontiguousarray(photo))
    left, top, width, height = central_square(*image.size, crop_share=crop_share)
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((image_size, image_size), Image.Resampling[interpolation.upper()], box=box))


def stretch(photo: Photo, *, image_size: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize the whole photo to a square, with Pillow, which antialiases; its shape changes.

    Args:
        photo: as in `transform`.
        image_size: side of the result.
        interpolation: Pillow's filter.

    Returns:
        uint8 `[image_size, image_size, 3]`.
    """
    image = _shortened(photo)
    return np.asarray(image.resize((image_size, image_size), Image.Resampling[interpolation.upper()]))


def letterbox(photo: Photo, *, image_size: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize the whole photo until its long side fits, as `stretch` does; what is left at the right or below is black.

    The shape stays, but for the short side's rounding to whole pixels.
    """
    height, width = photo.shape[:2] if isinstance(photo, np.ndarray) else (photo.height, photo.width)
    size = fitted(width, height, image_size=image_size)
    row = Image.new("RGB", (image_size, image_size))
    row.paste(_shortened(photo).resize(size, Image.Resampling[interpolation.upper()]))
    return np.asarray(row)


def asymmetric(photo: Photo, *, image_size: int, padded: bool) -> NDArray[np.float32]:
    """Resize the whole photo as TensorFlow 1 does by default: bilinear, two taps however much the photo shrinks.

    Pixel `i` is read at `i * source / target`, not between pixel centres; ONNX calls these coordinates asymmetric.

    Args:
        photo: as in `transform`.
        image_size: side of the result.
        padded: whether the photo first becomes a square, with zeros at the right or below; else it is stretched.

    Returns:
        float32 `[image_size, image_size, 3]`, 0..255.
    """
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(np.ascontiguousarray(photo))
    width, height = (max(image.size),) * 2 if padded else image.size
    across, down = width / image_size, height / image_size

    def picked(columns: int, lines: int) -> NDArray[np.float32]:
        """The pixels at so many columns to the right, and lines below, of the upper left ones; zeros beyond the photo.

        Pillow picks them where they are: copying a large photo into an array would take longer than all the rest.
        """
        x, y = columns + _HAIR - across / 2, lines + _HAIR - down / 2
        affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
        pixels = image.transform((image_size, image_size), affine, (across, 0, x, 0, down, y), nearest)
        return np.asarray(pixels).astype(np.float32)

    to_the_right, below = _further_share(width, image_size)[:, None], _further_share(height, image_size)[:, None, None]
    upper, lower = picked(0, 0), picked(0, 1)
    upper += (picked(1, 0) - upper) * to_the_right
    lower += (picked(1, 1) - lower) * to_the_right
    row: NDArray[np.float32] = upper + (lower - upper) * below
    return np.minimum(row, 255, out=row)  # rounding may lead beyond the scale


_LONGEST = 2**15


def _shortened(photo: Photo) -> Image.Image:
    """The photo; if it is very long, each pixel is the mean of several along that side.

    Pillow keeps a weight for each pixel of a side, and lines as wide as the result for the whole height: of a photo of
    one column and fifty million lines, gigabytes. Averaging moves an edge by a 30,000th of the photo at most.
    """
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(np.ascontiguousarray(photo))
    columns, lines = (math.ceil(side / _LONGEST) for side in image.size)
    return image if (columns, lines) == (1, 1) else image.reduce((columns, lines))


def _centre_crop(photo: Photo, image_size: int, crop_padding: int) -> Photo:
    """Cut the middle square; at least one pixel."""
    height, width = photo.shape[:2] if isinstance(photo, np.ndarray) else (photo.height, photo.width)
    left, top, side = centre_square(width, height, image_size=image_size, crop_padding=crop_padding)
    if isinstance(photo, np.ndarray):
        return photo[top : top + side, left : left + side]
    return photo.crop((left, top, left + side, top + side))


# TensorFlow looks its weights up in a table of this many steps per pixel.
_STEPS = 1024
# Keys' free parameter: -0.75 in TensorFlow 1's kernel, -0.5 in its `half_pixel_centers` one.
_SHARPNESS = -0.75


def _bicubic_taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Say which four source lines make up each target line: their `index` and `weight`, both `[4, target]`.

    Corners are aligned at the origin (pixel `i` lies at `i * source / target`), and lines beyond the edge are the
    edge's own.
    """
    position = np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target))
    before = np.floor(position)
    # The table is computed in float64 and rounded at the end.
    past = np.rint((position - before) * _STEPS).astype(np.float64) / _STEPS
    index = np.clip(before.astype(np.intp) + np.arange(-1, 3)[:, None], 0, source - 1)
    a = _SHARPNESS
    inner = [((a + 2) * x - (a + 3)) * x * x + 1 for x in (past, 1 - past)]
    outer = [((a * x - 5 * a) * x + 8 * a) * x - 4 * a for x in (1 + past, 2 - past)]
    return index, np.stack([outer[0], inner[0], inner[1], outer[1]]).astype(np.float32)


# Positions are whole numbers divided by the row's side. Those that should be whole and fall just short are lifted.
_HAIR = 1e-6


def _further_share(source: int, target: int) -> NDArray[np.float32]:
    """Of the two source lines that make up each target line, the share of the further one: `[target]`."""
    position = np.arange(target) * (source / target)
    nearer = np.floor(position + _HAIR)
    return np.where(nearer + 1 < source, np.maximum(position - nearer, 0), 0).astype(np.float32)


def _blend(
    lines: NDArray[Any], index: NDArray[np.intp], weight: NDArray[np.float32], *, axis: int
) -> NDArray[np.float32]:
    """Sum the taps along `axis`, as float32."""
    total: NDArray[np.float32] = lines.take(index[0], axis=axis) * weight[0]
    for which, share in zip(index[1:], weight[1:], strict=True):
        total += lines.take(which, axis=axis) * share
    return total
