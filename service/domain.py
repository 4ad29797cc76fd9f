"""The values and protocols that cross module borders. Frozen, and free of HTTP, TensorFlow and Pillow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError

TransformName = Literal["official", "pillow"]
Pixels = NDArray[np.uint8]
"""RGB, uint8: a whole photo `[height, width, 3]`."""
Row = NDArray[np.generic]
"""RGB on the scale 0..255, `[image_size, image_size, 3]`: a photo as the network takes it, or several `[B, ...]`.

Which type it has is `Preprocessing.row_type`; engines take uint8 in any case."""
JpegCropper = Callable[[bytes, int, int, int], Pixels | None]
"""Decodes the square with the corner `left, top` and the side `side` of a JPEG; None if it can't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What happens to a photo before the network sees it.

    `transform` and `image_size` (pixels) are applied outside the graph and give a `Row`; `(x - mean) / std` per
    channel, on the scale 0..255, is applied inside.
    """

    transform: TransformName
    image_size: int
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    crop_padding: int = 32
    """The centre crop takes `image_size / (image_size + crop_padding)` of the short side."""
    exact_decoding: bool = False
    """Whether the network sees the very pixels that the reference evaluation sees.

    If so, large JPEGs are decoded at full size, too, instead of at a fraction that leaves enough pixels; and those of
    `official` with TensorFlow's decoder, and its rows are not rounded to whole levels.
    """

    @property
    def row_type(self) -> type[np.uint8] | type[np.float32]:
        """What rows are made of."""
        return np.float32 if self.exact_decoding and self.transform == "official" else np.uint8


@dataclass(frozen=True, slots=True)
class Label:
    """The name of one class; `synset` is its WordNet id where it has one."""

    index: int
    label: str
    synset: str | None = None


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What the network says of `B` rows: `logits` float32 `[B, classes]`, `routing` float32 `[B, blocks, experts]`."""

    logits: NDArray[np.float32]
    routing: NDArray[np.float32]


class Engine(Protocol):
    """Computes a batch: rows `[B, image_size, image_size, 3]` in, a `ModelOutput` out. Thread-safe, any `B`."""

    def __call__(self, rows: Row, stream: int = 0, /) -> ModelOutput:
        """Compute all rows in one pass; `stream` is the number of the calling stream."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What computes a model; `reason` says why it isn't the engine that was tried first."""

    engine: str
    precision: str
    device: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedModel:
    """One version of a model, ready to compute. Compared by identity: a reloaded version is another one."""

    name: str
    version: str
    engine: Engine
    labels: Sequence[Label]
    preprocessing: Preprocessing
    routing_blocks: tuple[str, ...]
    """Names of the CondConv blocks, in the order of the second axis of `ModelOutput.routing`."""
    num_experts: int
    computed_by: EngineDescription
    description: Mapping[str, Any] = field(default_factory=dict)
    """What `GET /models/{name}` tells of it."""
    crop_jpeg: JpegCropper | None = None
    """What decodes its JPEGs, if not what decodes all other photos."""


class ModelSource(Protocol):
    """Where the classifier finds its models."""

    def get(self, name: str | None, version: str | None) -> ServedModel:
        """Return the model; None means the default one, and its latest version.

        Raises:
            ModelNotFound: no such model is served.
            VersionNotFound: the model is not served in this version.
        """
        ...


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of an answer; `probability` is the softmax over all classes."""

    index: int
    label: str
    synset: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """The routing weights of one image: `weights` float32 `[blocks, experts]`, each the sigmoid's value in 0..1."""

    blocks: tuple[str, ...]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where an image's time went, in seconds. `total` also holds what lies between the stages."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one image."""

    classes: tuple[ClassScore, ...]
    routing: RoutingTrace
    timings: Timings
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """What became of one image of a request: exactly one of `prediction` and `error` is set."""

    id: str
    filename: str | None
    prediction: Prediction | None = None
    error: ServiceError | None = None


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as it came in: undecoded bytes and the name its sender gave it."""

    data: bytes
    filename: str | None = None
    id: str | None = None
