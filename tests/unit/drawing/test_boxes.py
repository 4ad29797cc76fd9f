"""Boxes with captions over photos of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import Box, DetectedObject
from condconv_serve.drawing import DrawnBox, draw_boxes, drawn
from condconv_serve.drawing.captions import Caption, place_captions
from condconv_serve.drawing.colours import BLACK, CLASS_COLOURS, WHITE, colour_of, ink_on
from condconv_serve.drawing.fonts import font_of

GREY = (128, 128, 128)


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed(photo: Image.Image, *boxes: DrawnBox) -> np.ndarray:
    """Which pixels of a photo were drawn over."""
    before = np.asarray(photo)
    return np.asarray((np.asarray(draw_boxes(photo, boxes)) != before).any(axis=2))


def test_a_line_lies_inside_the_box_with_a_dark_edge() -> None:
    picture = np.asarray(draw_boxes(grey(200, 100), [DrawnBox(box=Box(20.2, 30.0, 119.5, 80.0), colour=1)]))
    assert picture.shape == (100, 200, 3)
    colour = colour_of(1)
    for row, column in ((30, 20), (30, 119), (79, 20), (79, 119), (30, 70), (55, 20)):
        assert tuple(picture[row, column]) == colour, (row, column)
    for row, column in ((29, 70), (31, 70), (55, 19), (55, 21), (80, 70), (55, 120)):
        assert tuple(picture[row, column]) == BLACK, (row, column)
    for row, column in ((28, 70), (55, 70), (55, 18), (81, 70), (55, 121)):
        assert tuple(picture[row, column]) == GREY, (row, column)


def test_a_photo_stays_as_it_is() -> None:
    photo = grey(50, 50)
    draw_boxes(photo, [DrawnBox(box=Box(5, 5, 45, 45), label="cup", value="98%")])
    assert photo.getcolors() == [(2500, GREY)]
    assert draw_boxes(photo, []).getcolors() == [(2500, GREY)]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_photos_of_every_mode(mode: str) -> None:
    picture = draw_boxes(grey(60, 60).convert(mode), [DrawnBox(box=Box(5, 5, 55, 55))])
    assert (picture.mode, picture.getpixel((5, 5))) == ("RGB", colour_of(0))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (16, 16), (30, 30), (100, 75), (1000, 40)])
@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (0.4, 0.4, 0.4, 0.4), (0.9, 0.9, 1, 1), (0, 0.5, 1, 0.5), (-0.5, -0.5, 1.5, 1.5)]
)
def test_small_photos_and_odd_boxes(size: tuple[int, int], box: tuple[float, ...]) -> None:
    place = Box(*(edge * size[number % 2] for number, edge in enumerate(box)))
    one = DrawnBox(box=place, label="a label that is far too long for most of these pictures", value="100%")
    assert changed(grey(*size), one, one).any()


@pytest.mark.parametrize(("side", "caption", "line"), [(100, 12, 1), (640, 18, 3), (6000, 170, 27)])
def test_text_and_lines_grow_with_the_photo(side: int, caption: int, line: int) -> None:
    """A caption's height and a line's width, in pixels; the box covers the lower half."""
    one, middle = DrawnBox(box=Box(0, side // 2, side, side), label="cup"), side // 2
    picture = draw_boxes(grey(side, side), [one])

    def coloured(area: tuple[int, int, int, int]) -> int:
        """In how many lines of an area there is a pixel of the box's colour."""
        return int((np.asarray(picture.crop(area)) == colour_of(0)).all(axis=2).any(axis=1).sum())

    assert coloured((0, 0, side // 10, middle - line)) == pytest.approx(caption, rel=0.15)
    assert coloured((middle, middle, middle + 1, side)) == 2 * line


def test_a_dashed_box_has_gaps() -> None:
    def coloured(dashed: bool) -> int:
        one = DrawnBox(box=Box(10, 10, 190, 190), dashed=dashed)
        return int((np.asarray(draw_boxes(grey(200, 200), [one])) == colour_of(0)).all(axis=2).sum())

    assert 0.4 < coloured(True) / coloured(False) < 0.65


def random_captions(seed: int, count: int, width: int, height: int) -> list[Caption]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        (left, right), (top, bottom) = (np.sort(random.integers(0, side, 2)) for side in (width, height))
        label = "wort " * int(random.integers(0, 12))
        found.append(Caption(box=(int(left), int(top), int(right), int(bottom)), label=label, value="50%"))
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("width", "height", "count"), [(640, 480, 10), (100, 75, 4), (300, 60, 30), (50, 400, 5)])
def test_captions_stay_in_the_picture_and_out_of_each_others_way(
    seed: int, width: int, height: int, count: int
) -> None:
    font = font_of(12)
    placed = place_captions(random_captions(seed, count, width, height), font=font, picture=(width, height), line=2)
    covered = np.zeros((height, width), int)
    for caption in placed:
        if caption is None:
            continue
        left, top, right, bottom = caption.area
        assert 0 <= left <= right < width
        assert 0 <= top <= bottom < height
        covered[top : bottom + 1, left : right + 1] += 1
        assert caption.text.endswith("50%")
        text_left, text_top, text_right, text_bottom = font.getbbox(caption.text, anchor="ls")
        x, y = caption.text_at
        assert left <= x + text_left <= x + text_right <= right + 1
        assert top <= y + text_top <= y + text_bottom <= bottom + 1
    assert covered.max() <= 1
    assert placed[0] is not None, "the first one has all the room there is"


def test_captions_lie_above_their_boxes_where_there_is_room() -> None:
    box = (100, 100, 200, 200)
    captions = [Caption(box=box, label="cup", value="90%")] * 2
    one, other = place_captions(captions, font=font_of(12), picture=(640, 480), line=2)
    assert one is not None
    assert other is not None
    assert (one.area[0], one.area[3]) == (100, 99)
    assert (other.area[1], other.area[3]) in ((one.area[1], 99), (102, 101 + one.area[3] - one.area[1] + 1))
    assert one.text == "cup 90%"


def test_a_label_is_shortened_before_its_score() -> None:
    long = Caption(box=(0, 50, 99, 99), label="x" * 50, value="90%")
    (placed,) = place_captions([long], font=font_of(12), picture=(100, 100), line=1)
    assert placed is not None
    assert placed.text.startswith("xx")
    assert placed.text.endswith("x… 90%")
    (placed,) = place_captions([long], font=font_of(12), picture=(36, 100), line=1)
    assert placed is not None
    assert placed.text == "90%"
    assert place_captions([long], font=font_of(12), picture=(20, 100), line=1) == [None]
    assert place_captions([long], font=font_of(12), picture=(100, 30), line=1) == [None], "it would hide the picture"


def test_letters_of_many_alphabets() -> None:
    """Each is drawn, and none as the box that stands for letters that a font hasn't."""
    font = font_of(20)
    missing = font.getmask("\U0010fffe").getbbox(), bytes(font.getmask("\U0010fffe"))
    for letter in "aéßñΩжĐł→":
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != missing, letter


def test_odd_labels() -> None:
    for label in ("two\nlines", "\x1b[31m", "\u202eabc", "", "e" * 100_000):
        draw_boxes(grey(200, 100), [DrawnBox(box=Box(10, 40, 90, 90), label=label, value="50%")])


def test_the_best_lies_on_top() -> None:
    box = Box(10, 40, 90, 90)
    picture = draw_boxes(grey(100, 100), [DrawnBox(box=box, colour=0), DrawnBox(box=box, colour=1)])
    assert picture.getpixel((10, 40)) == colour_of(0)


def test_text_can_be_read_on_every_colour() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [math.pow((part / 255 + 0.055) / 1.055, 2.4) if part > 10 else part / 255 / 12.92 for part in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour in CLASS_COLOURS:
        high, low = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour
    assert (ink_on((255, 255, 0)), ink_on((0, 0, 128))) == (BLACK, WHITE)


def test_a_class_has_its_colour_in_every_picture() -> None:
    assert len({colour_of(index) for index in range(len(CLASS_COLOURS))}) == len(CLASS_COLOURS)
    assert colour_of(len(CLASS_COLOURS) + 2) == colour_of(2)


def test_objects_become_boxes() -> None:
    box = Box(1, 2, 3, 4)
    found = DetectedObject(index=5, label="cup", synset=None, score=0.987, box=box, box_normalized=box)
    assert drawn([found]) == [DrawnBox(box=box, label="cup", value="99%", colour=5)]
