"""Where rows lie in their photos: what each transform takes of one."""

from __future__ import annotations

import numpy as np

from condconv_serve.domain import Placement, Preprocessing


def whole_photo(width: int, height: int) -> Placement:
    """The placement of all pixels of a photo."""
    return Placement(photo_width=width, photo_height=height, left=0, top=0, width=width, height=height)


def place_row(preprocessing: Preprocessing, *, width: int, height: int, within: Placement | None = None) -> Placement:
    """Where the row lies that a transform makes.

    Args:
        preprocessing: names the transform.
        width: of the pixels that are transformed.
        height: of them.
        within: where these pixels lie in the photo; None: they are the photo.
    """
    pixels = within or whole_photo(width, height)
    left, top, across, down = _taken(preprocessing, width, height)
    x, y = pixels.width / width, pixels.height / height
    return Placement(
        photo_width=pixels.photo_width,
        photo_height=pixels.photo_height,
        left=pixels.left + x * left,
        top=pixels.top + y * top,
        width=x * across,
        height=y * down,
    )


def _taken(preprocessing: Preprocessing, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of what becomes the row, from edge to edge.

    TensorFlow 1's resizes, of `official` and asymmetric, read half a pixel of the row too far to the left and above.
    Networks that are trained so learn boxes that keep to the edges, and so do the programs that publish them.
    """
    size = preprocessing.image_size
    match preprocessing.transform:
        case "official" | "pillow":
            left, top, side = centre_square(width, height, image_size=size, crop_padding=preprocessing.padding)
            return left, top, side, side
        case "central":
            return central_square(width, height, crop_share=preprocessing.crop_share)
        case "stretch":
            return 0, 0, width, height
        case "letterbox" if preprocessing.interpolation == "asymmetric":
            side = max(width, height)
            return 0, 0, side, side
        case "letterbox":
            across, down = fitted(width, height, image_size=size)
            return 0, 0, width * size / across, height * size / down


def centre_square(width: int, height: int, *, image_size: int, crop_padding: int) -> tuple[int, int, int]:
    """Return `left`, `top` and `side` of the official centre crop of a photo of this size, in pixels."""
    # In float32, as TensorFlow computes it: float64 makes some crops one line smaller or larger.
    share = np.float32(image_size / (image_size + crop_padding))
    side = max(1, int(share * np.float32(min(height, width))))
    return (width - side + 1) // 2, (height - side + 1) // 2, side


def central_square(width: int, height: int, *, crop_share: float) -> tuple[float, float, float, float]:
    """Return `left`, `top`, `width` and `height` of a centre crop whose edges lie anywhere between pixels."""
    side = crop_share * min(width, height)
    return (width - side) / 2, (height - side) / 2, side, side


def fitted(width: int, height: int, *, image_size: int) -> tuple[int, int]:
    """Width and height, in pixels of the row, of a whole photo whose long side is the row's; at least 1."""
    longest = max(width, height)
    return max(1, round(width * image_size / longest)), max(1, round(height * image_size / longest))
