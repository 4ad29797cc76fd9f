"""Boxes with captions over a photo, readable on photos of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from condconv_serve.domain import Box, DetectedObject
from condconv_serve.drawing.captions import Area, Caption, place_captions
from condconv_serve.drawing.colours import BLACK, colour_of, ink_on
from condconv_serve.drawing.fonts import font_of

_TEXT_SHARE = 1 / 45
"""Height of a caption's text, as a share of the photo's side (the geometric mean of both)."""
_SMALLEST_TEXT = 10
"""Pixels: smaller letters can't be read."""
_LINE_SHARE = 1 / 220
"""Width of a line, as a share of the photo's side."""
_MOST_LETTERS = 200
"""No picture has room for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBox:
    """A box to draw.

    Attributes:
        box: in pixels of the photo.
        label: the caption's first part, which is shortened if it is too long.
        value: its last part, which never is.
        colour: a number; equal numbers have equal colours.
        dashed: whether its line is dashed, as for what was expected beside what was found.
    """

    box: Box
    label: str = ""
    value: str = ""
    colour: int = 0
    dashed: bool = False


def drawn(objects: Iterable[DetectedObject]) -> list[DrawnBox]:
    """The boxes of objects, each with its label and score, in the colour of its class."""
    return [
        DrawnBox(box=found.box, label=found.label, value=f"{found.score:.0%}", colour=found.index) for found in objects
    ]


def draw_boxes(photo: Image.Image, boxes: Sequence[DrawnBox]) -> Image.Image:
    """Draw boxes over a copy of a photo.

    Text and lines grow with the photo. Captions stay within the photo and out of each other's way: where there is too
    little room they are shortened, or left out. The first boxes lie on top, and their captions get the best places.

    Args:
        photo: upright, in any mode.
        boxes: the most important one first.

    Returns:
        An RGB image of the same size.
    """
    picture = photo.convert("RGB") if photo.mode != "RGB" else photo.copy()
    side = math.sqrt(picture.width * picture.height)
    size, line = max(_SMALLEST_TEXT, round(side * _TEXT_SHARE)), max(1, round(side * _LINE_SHARE))
    draw, font = ImageDraw.Draw(picture), font_of(size)
    for one in reversed(boxes):
        _draw_box(draw, _pixels(one.box, picture.size), one, line)
    captions = [
        Caption(box=_pixels(one.box, picture.size), label=_one_line(one.label), value=_one_line(one.value))
        for one in boxes
    ]
    placed = place_captions(captions, font=font, picture=picture.size, line=line)
    for one, found in reversed(list(zip(boxes, placed, strict=True))):
        if found is None:
            continue
        colour = colour_of(one.colour)
        draw.rectangle(found.area, fill=colour)
        draw.text(found.text_at, found.text, fill=ink_on(colour), font=font, anchor="ls")
    return picture


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MOST_LETTERS])


def _pixels(box: Box, size: tuple[int, int]) -> Area:
    """The pixels that a box covers, wholly or in part; at least one, and within the photo."""
    left, right = _span(box.xmin, box.xmax, size[0])
    top, bottom = _span(box.ymin, box.ymax, size[1])
    return left, top, right, bottom


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    first = min(max(math.floor(low), 0), length - 1)
    return first, min(max(math.ceil(high) - 1, first), length - 1)


def _draw_box(draw: ImageDraw.ImageDraw, area: Area, one: DrawnBox, line: int) -> None:
    """A line inside the box, with a dark edge on both sides, so that it shows on any photo."""
    colour, edge = colour_of(one.colour), max(1, line // 3)
    left, top, right, bottom = area
    outer = (left - edge, top - edge, right + edge, bottom + edge)
    draw.rectangle(outer, outline=BLACK, width=line + 2 * edge)
    if not one.dashed:
        draw.rectangle(area, outline=colour, width=line)
        return
    dash = 4 * line
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash, right + 1) - 1
        draw.rectangle((start, top, end, min(top + line - 1, bottom)), fill=colour)
        draw.rectangle((start, max(bottom - line + 1, top), end, bottom), fill=colour)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash, bottom + 1) - 1
        draw.rectangle((left, start, min(left + line - 1, right), end), fill=colour)
        draw.rectangle((max(right - line + 1, left), start, right, end), fill=colour)
