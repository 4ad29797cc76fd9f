"""Photos varied for training, with their boxes: other colours, mirrored, another part of them, larger or smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condconv_serve.domain import Objects, Row
from condconv_serve.training.detection.matching import covered

Window = NDArray[np.float64]
"""What is shown of a photo: `ymin, xmin, ymax, xmax`; 0 to 1 is the photo, and a window may reach beyond it."""

_WHOLE = np.array([0.0, 0.0, 1.0, 1.0])
_TRIES = 30
_LEAST_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_SMALLEST, _ASPECT = 0.3, 2.0
_VISIBLE = 0.1
"""Of what a window cuts off, so much must be visible for it not to be background."""
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
# YIQ: hue is the angle between I and Q.
_TO_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)
_FROM_YIQ = np.linalg.inv(_TO_YIQ).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionAugmentation:
    """How photos are varied.

    Attributes:
        mirror: half of them, left and right exchanged.
        colour: brightness, contrast, saturation and hue.
        crop: a part of a photo, which shows some object by at least a share that is drawn.
        zoom_out: half of the photos lie on a larger grey ground, whose sides are up to so many times as long; 1: none.
    """

    mirror: bool = True
    colour: bool = True
    crop: bool = True
    zoom_out: float = 2.0

    def __bool__(self) -> bool:
        """Whether they are varied at all."""
        return self.mirror or self.colour or self.crop or self.zoom_out > 1


NONE = DetectionAugmentation(mirror=False, colour=False, crop=False, zoom_out=1)


def vary(
    row: Row,
    objects: Objects,
    *,
    size: int,
    augmentation: DetectionAugmentation,
    ground: NDArray[np.float32],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], Objects]:
    """Show a photo differently.

    Args:
        row: uint8 or float32 `[S, S, 3]`, 0..255, larger than what is made of it or as large.
        objects: boxes where 0 to 1 is the row.
        size: pixels per side of the result.
        augmentation: what may vary.
        ground: RGB of what lies beyond the photo, 0..255.
        rng: draws.

    Returns:
        float32 `[size, size, 3]`, 0..255, and the objects that it shows. What is mostly cut off counts as a crowd.
    """
    window = _WHOLE
    if augmentation.zoom_out > 1 and rng.random() < 0.5:
        window = zoomed_out(rng, augmentation.zoom_out)
    if augmentation.crop:
        window = cropped(window, objects, rng)
    pixels = show(row, window, size, ground)
    objects = seen_through(objects, window)
    if augmentation.mirror and rng.random() < 0.5:
        pixels, objects = pixels[:, ::-1], mirrored(objects)
    if augmentation.colour:
        pixels = recoloured(pixels, rng)
    return np.ascontiguousarray(pixels, np.float32), objects


def zoomed_out(rng: np.random.Generator, most: float) -> Window:
    """A window that holds the whole photo somewhere, and whose sides are up to `most` times as long."""
    side = rng.uniform(1, most)
    corner = -rng.uniform(0, side - 1, 2)
    return np.concatenate([corner, corner + side])


def cropped(window: Window, objects: Objects, rng: np.random.Generator) -> Window:
    """A part of a window that shows some object's centre, and at least a share of that object, which is drawn, too.

    In one of seven cases, and where none is found, it is the whole window. (SSD asks for an overlap of the part and the
    object instead, which no part can have with a small object.)
    """
    choice = int(rng.integers(len(_LEAST_SHARES) + 1))
    boxes = objects.boxes[~objects.crowd]
    if choice == len(_LEAST_SHARES) or not len(boxes):
        return window
    least = _LEAST_SHARES[choice]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    whole = window[2:] - window[:2]
    for _ in range(_TRIES):
        share = rng.uniform(_SMALLEST, 1, 2)
        if not 1 / _ASPECT <= share[0] / share[1] <= _ASPECT:
            continue
        corner = window[:2] + rng.uniform(0, 1 - share) * whole
        part = np.concatenate([corner, corner + share * whole])
        inside = ((centres > part[:2]) & (centres < part[2:])).all(axis=1)
        if inside.any() and covered(boxes[inside], part).max() >= least:
            return part
    return window


def show(row: Row, window: Window, size: int, ground: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a window shows of a photo, `[size, size, 3]`, antialiased."""
    scale = size / (window[2:] - window[:2])
    # Whole pixels of the result, and what of the photo lies exactly there.
    low = np.clip(np.round((0 - window[:2]) * scale), 0, size).astype(int)
    high = np.clip(np.round((1 - window[:2]) * scale), 0, size).astype(int)
    pixels = np.empty((size, size, 3), np.float32)
    pixels[:] = ground
    if (high <= low).any():
        return pixels
    side = len(row)
    top, left = np.clip(low / scale + window[:2], 0, 1) * side
    bottom, right = np.clip(high / scale + window[:2], 0, 1) * side
    shape = (int(high[1] - low[1]), int(high[0] - low[0]))
    photo = Image.fromarray(np.clip(row, 0, 255).astype(np.uint8))
    part = photo.resize(shape, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    pixels[low[0] : high[0], low[1] : high[1]] = np.asarray(part)
    return pixels


def seen_through(objects: Objects, window: Window) -> Objects:
    """The objects as a window shows them, cut at its edges.

    Those whose centre it doesn't show are left out; if something of them is visible, they count as a crowd.
    """
    sides = np.tile(window[2:] - window[:2], 2)
    boxes = (objects.boxes - np.tile(window[:2], 2)) / sides
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > 0) & (centres < 1)).all(axis=1)
    shown = np.clip(boxes, 0, 1)
    area, whole = ((one[:, 2:] - one[:, :2]).prod(axis=1) for one in (shown, boxes))
    kept = (shown[:, 2:] > shown[:, :2]).all(axis=1) & (inside | (area > _VISIBLE * whole))
    return Objects(shown, objects.classes, objects.crowd | ~inside)[kept]


def mirrored(objects: Objects) -> Objects:
    """The objects with left and right exchanged."""
    ymin, xmin, ymax, xmax = objects.boxes.T
    return Objects(np.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=1), objects.classes, objects.crowd)


def recoloured(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Change brightness, contrast, saturation and hue, each by a little and in half of the cases."""
    brightness, contrast, saturation, hue = (
        rng.uniform(*limits) if rng.random() < 0.5 else neutral
        for limits, neutral in (((-32, 32), 0.0), ((0.6, 1.4), 1.0), ((0.6, 1.4), 1.0), ((-0.2, 0.2), 0.0))
    )
    turn = np.array([[1, 0, 0], [0, np.cos(hue), -np.sin(hue)], [0, np.sin(hue), np.cos(hue)]], np.float32)
    turn[1:] *= saturation
    matrix = contrast * (_FROM_YIQ @ turn @ _TO_YIQ)
    mean = pixels.mean() * (1 - contrast)
    result: NDArray[np.float32] = np.clip(pixels @ matrix.T.astype(np.float32) + np.float32(mean + brightness), 0, 255)
    return result
