"""The font of captions: one with the letters of most alphabets, which comes with matplotlib."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FILE = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")


@lru_cache(maxsize=16)
def font_of(size: int) -> Font:
    """The font in a size in pixels; Pillow's own, which knows fewer letters, if matplotlib's has been taken away."""
    found = find_spec("matplotlib")  # importing it would take longer than drawing does
    if found is not None and found.origin is not None and (file := Path(found.origin).parent / _FILE).is_file():
        return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)
