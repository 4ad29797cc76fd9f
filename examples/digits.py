"""The images that the examples train on: 1,797 scanned handwritten digits (UCI, from scikit-learn), as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

TEST_EVERY = 5
"""Every fifth image is for testing."""


def write_digits(directory: Path, *, size: int = 32, margin: int = 0) -> tuple[Path, Path]:
    """Write the scans as PNG files, a folder per digit.

    Args:
        directory: where to write. Files that are there already stay.
        size: pixels per side that a scan is enlarged to; it has 8.
        margin: black pixels to add on every side.

    Returns:
        The directory of the training images, and that of the test images.
    """
    digits = load_digits()
    train, test = directory / "train", directory / "test"
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = (test if number % TEST_EVERY == 0 else train) / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        grey = np.rint(image * (255 / 16)).astype(np.uint8)
        scan = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC)
        ImageOps.expand(scan, border=margin).save(folder / f"{number:04}.png")
    return train, test
