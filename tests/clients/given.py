"""What the suites are given: where the server is, a hundred photos, and what `/predict` says of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DETECTOR = "colours"
"""The detector's name."""
DETECTIONS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
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
        detectors_http: host and port of a server with a detector, which finds colours.
        detectors_grpc: the same of its gRPC server.
    """

    http: str
    grpc: str
    model: str
    labels: list[str]
    photos: list[bytes]
    pixels: NDArray[np.uint8]
    expected: NDArray[np.float64]
    detectors_http: str
    detectors_grpc: str

    def save(self, folder: Path) -> None:
        """Write everything into a folder."""
        names = ("http", "grpc", "model", "labels", "detectors_http", "detectors_grpc")
        texts = {name: getattr(self, name) for name in names}
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


def coloured() -> bytes:
    """A picture with a red rectangle."""
    picture = Image.new("RGB", (160, 80))
    picture.paste((255, 0, 0), (40, 10, 60, 20))
    picture.save(data := io.BytesIO(), "PNG")
    return data.getvalue()


def check_objects(found: Mapping[str, NDArray[np.floating]], *, most: int) -> None:
    """The detector's answer about one `coloured` picture holds its rectangle, and `most` places."""
    assert {name: values.shape for name, values in found.items()} == {
        "detection_boxes": (1, most, 4),
        "detection_scores": (1, most),
        "detection_classes": (1, most),
        "num_detections": (1,),
    }
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    assert (found["num_detections"][0], found["detection_classes"][0, 0]) == (1, 0)
    assert np.allclose(found["detection_boxes"][0, 0], [1 / 8, 2 / 8, 2 / 8, 3 / 8])
    assert found["detection_scores"][0, 0] > 0.8
