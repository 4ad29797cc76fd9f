"""Where captions of boxes go: beside their box, within the picture, and out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from condconv_serve.drawing.fonts import Font

Area = tuple[int, int, int, int]
"""The first and the last pixel: left, top, right, bottom."""
_PADDING_SHARE = 1 / 5
"""Room around a caption's text, as a share of its height."""
_LARGEST_SHARE = 1 / 3
"""Captions higher than this share of the picture would hide it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What is to be said of a box: `label` may be shortened, `value` not."""

    box: Area
    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedCaption:
    """Where a caption goes.

    Attributes:
        text: what it says.
        area: which pixels it covers.
        text_at: left end of the text's base line.
    """

    text: str
    area: Area
    text_at: tuple[int, int]


def place_captions(
    captions: Sequence[Caption], *, font: Font, picture: tuple[int, int], line: int
) -> list[PlacedCaption | None]:
    """Find places for captions, in their order: the first ones get the best.

    Args:
        captions: of all boxes of a picture.
        font: of their text.
        picture: its width and height.
        line: width of the boxes' lines.

    Returns:
        A place for each. If there is no room for all of a caption, only its value is said; None if there is no room for
        that either.
    """
    ascent, descent = _heights(font)
    padding = max(1, round((ascent + descent) * _PADDING_SHARE))
    height = ascent + descent + padding  # the font's own heights leave some room above and below
    found: list[PlacedCaption | None] = []
    taken: list[Area] = []
    for caption in captions:
        placed = None
        texts = (_fitting(caption, font, picture[0] - 2 * padding), caption.value)
        for text in texts if height <= picture[1] * _LARGEST_SHARE else ():
            size = (_width(font, text) + 2 * padding, height)
            place = _free(caption.box, size, picture, line=line, taken=taken) if text else None
            if place is not None:
                left, top = place
                area = (left, top, left + size[0] - 1, top + height - 1)
                taken.append(area)
                at = (left + padding, top + padding // 2 + ascent)
                placed = PlacedCaption(text=text, area=area, text_at=at)
                break
        found.append(placed)
    return found


def _free(
    box: Area, size: tuple[int, int], picture: tuple[int, int], *, line: int, taken: Sequence[Area]
) -> tuple[int, int] | None:
    """The best place where no caption is yet: above the box, inside it, below it; left, then right."""
    (left, top, right, bottom), (width, height) = box, size
    most_left, most_top = picture[0] - width, picture[1] - height
    if most_left < 0 or most_top < 0:
        return None
    for y in (top - height, top + line, bottom + 1, bottom + 1 - line - height):
        for x in (left, right + 1 - width):
            place = min(max(x, 0), most_left), y
            if 0 <= y <= most_top and not any(_overlap(place, size, other) for other in taken):
                return place
    return None


def _overlap(place: tuple[int, int], size: tuple[int, int], other: Area) -> bool:
    (x, y), (width, height), (left, top, right, bottom) = place, size, other
    return x <= right and left < x + width and y <= bottom and top < y + height


def _fitting(caption: Caption, font: Font, width: int) -> str:
    """The caption, with as much of the label as there is room for; empty if there is none even for its value."""
    whole = f"{caption.label} {caption.value}".strip()
    if _width(font, whole) <= width:
        return whole
    short, long = 0, len(caption.label)
    while short < long:  # how many letters fit
        middle = (short + long + 1) // 2
        if _width(font, _shortened(caption, middle)) <= width:
            short = middle
        else:
            long = middle - 1
    text = _shortened(caption, short) if short else caption.value
    return text if _width(font, text) <= width else ""


def _shortened(caption: Caption, letters: int) -> str:
    return f"{caption.label[:letters]}… {caption.value}".strip()


def _width(font: Font, text: str) -> int:
    return round(font.getlength(text))


def _heights(font: Font) -> tuple[int, int]:
    """Pixels above and below the base line."""
    _, top, _, bottom = font.getbbox("Ågj", anchor="ls")
    return round(-top), round(bottom)
