"""A hundred photos: those that the model's accuracy was measured with, or parts of the few that scikit-image has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests import pictures

COUNT = 100
MEASURED = Path(__file__).resolve().parents[3] / "shared" / "default_model" / "eval"
"""Photos of the accuracy, which are not part of the product."""


def photos() -> list[bytes]:
    """`COUNT` encoded photos; the same at each call."""
    files = sorted(MEASURED.glob("*.jpg"))[:COUNT]
    return [file.read_bytes() for file in files] if len(files) == COUNT else parts()


def parts() -> list[bytes]:
    """Random parts of the bundled photos, in several formats and sizes."""
    random = np.random.default_rng(0)
    names = list(pictures.PHOTOS)
    return [_part(names[place % len(names)], place, random) for place in range(COUNT)]


def _part(name: str, place: int, random: np.random.Generator) -> bytes:
    image = Image.fromarray(pictures.photo(name))
    side = int(random.integers(min(image.size) // 2, min(image.size)))
    left, top = (int(random.integers(0, size - side)) for size in image.size)
    part = image.crop((left, top, left + side, top + side)).resize((int(random.integers(180, 500)), 300))
    return pictures.encode(part, ("JPEG", "PNG", "WEBP")[place % 3])
