"""Finds similar images: those whose features point in about the same direction.

Make the features of some photos first, here or with a server, then compare them:

    condconv features photos/ --data features.npz
    curl -F image=@a.jpg -F image=@b.jpg 'http://127.0.0.1:8000/features?format=npz' > features.npz

    python examples/similar_images.py features.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def cosines(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of the angle between each two rows, `[N, N]`: 1 is the same direction, 0 has nothing in common."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, 1e-12)
    return directions @ directions.T


def main() -> None:
    """Print each image's nearest others."""
    arguments = argparse.ArgumentParser(description="Find similar images by their features.")
    arguments.add_argument("features", type=Path, help="NPZ file of `condconv features` or `POST /features`")
    arguments.add_argument("--neighbours", type=int, default=3, help="how many to show for each image")
    options = arguments.parse_args()
    with np.load(options.features, allow_pickle=False) as arrays:
        good = arrays["errors"] == ""  # the features of others are NaN
        names, features = arrays["filenames"][good], arrays["features"][good]
    similar = cosines(features)
    np.fill_diagonal(similar, -np.inf)  # everything is most similar to itself
    width = max((len(Path(name).name) for name in names), default=0)
    for name, row in zip(names, similar, strict=True):
        nearest = np.argsort(-row, kind="stable")[: min(options.neighbours, len(names) - 1)]
        found = ", ".join(f"{row[place]:.2f} {Path(names[place]).name}" for place in nearest)
        print(f"{Path(name).name:{width}}  {found or 'no other image'}")


if __name__ == "__main__":
    main()
