"""What the suites are given: where the server is, a hundred photos, and what `/predict` says of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-6
"""By how much a probability may differ from that of `/predict`."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a suite works with.

    Attributes:
        http: host and port of the server.
        grpc: host and port of its gRPC server.
        model: name of its default model.
        labels: of the model's classes.
        photos: encoded images.
        pixels: the same as rows, cropped and resized: uint8 `[N, S, S, 3]`.
        expected: their probabilities `[N, classes]`.
    """

    http: str
    grpc: str
    model: str
    labels: list[str]
    photos: list[bytes]
    pixels: NDArray[np.uint8]
    expected: NDArray[np.float64]

    def save(self, folder: Path) -> None:
        """Write everything into a folder."""
        texts = {"http": self.http, "grpc": self.grpc, "model": self.model, "labels": self.labels}
        (folder / "given.json").write_text(json.dumps(texts))
        for place, photo in enumerate(self.photos):
            (folder / f"{place:03}.photo").write_bytes(photo)
        np.savez(folder / "given.npz", pixels=self.pixels, expected=self.expected)

    @classmethod
    def load(cls, folder: Path) -> Given:
        """Read what `save` has written."""
        with np.load(folder / "given.npz") as arrays:
            return cls(
                photos=[file.read_bytes() for file in sorted(folder.glob("*.photo"))],
                **json.loads((folder / "given.json").read_text()),
                **arrays,
            )

    def check(self, answers: NDArray[np.floating]) -> None:
        """Compare probabilities of all photos, `[N, classes]`, with those of `/predict`."""
        assert answers.shape == self.expected.shape
        assert np.abs(answers - self.expected).max() <= TOLERANCE
        assert (answers.argmax(axis=1) == self.expected.argmax(axis=1)).all()
