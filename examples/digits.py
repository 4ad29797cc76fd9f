"""The data set of the examples: 1,797 scanned handwritten digits (UCI), which come with scikit-learn, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

TEST_EVERY = 5
"""Every fifth image is kept for the test."""


def write_digits(directory: Path, *, size: int = 32, margin: int = 0) -> tuple[Path, Path]:
    """Write a folder per digit.

    Args:
        directory: where to; what is there already stays.
        size: pixels per side; the scans have 8.
        margin: black pixels around that.

    Returns:
        The directories of the training and of the test images.
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
