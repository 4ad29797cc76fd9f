"""The values and protocols that cross module borders. Frozen, and free of HTTP, TensorFlow and Pillow."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError

TransformName = Literal["official", "pillow"]
Pixels = NDArray[np.uint8]
"""RGB, uint8: a whole photo `[height, width, 3]`, or a row `[image_size, image_size, 3]` for the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What happens to a photo before the network sees it.

    `transform` and `image_size` (pixels) are applied outside the graph and give uint8 RGB; `(x - mean) / std`
    per channel, on the scale 0..255, is applied inside.
    """

    transform: TransformName
    image_size: int
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    crop_padding: int = 32
    """The centre crop takes `image_size / (image_size + crop_padding)` of the short side."""
    exact_decoding: bool = False
    """Whether large JPEGs are decoded at full size, too, instead of at a fraction that leaves enough pixels."""


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
    """Computes a batch: uint8 rows `[B, image_size, image_size, 3]` in, a `ModelOutput` out. Thread-safe, any `B`."""

    def __call__(self, rows: Pixels, stream: int = 0, /) -> ModelOutput:
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
    """The most experts of any block; the third axis of `ModelOutput.routing`."""
    computed_by: EngineDescription
    description: Mapping[str, Any] = field(default_factory=dict)
    """What `GET /models/{name}` tells of it."""
    experts_per_block: tuple[int, ...] | None = None
    """Experts of each block, where they differ from `num_experts`; what a block has less is zero in the arrays."""


class ModelSource(Protocol):
    """Where the classifier finds its models."""

    def get(self, name: str | None, version: str | None, *, key: str = "") -> ServedModel:
        """Return the model.

        Args:
            name: of the model; None means the default one.
            version: its version, or an alias; None means the alias `default`, or the newest if there is no such alias.
            key: where an alias splits traffic, equal keys get equal versions.

        Raises:
            ModelNotFound: no such model is served.
            VersionNotFound: the model is not served in this version.
        """
        ...

    def lease(
        self, name: str | None, version: str | None, *, key: str = ""
    ) -> contextlib.AbstractContextManager[ServedModel]:
        """Return the model like `get`, and keep it loaded until the block ends."""
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
    """The routing weights of one image: `weights` float32 `[blocks, experts]`, each the sigmoid's value in 0..1.

    `experts` are those of each block; where it has fewer than others, its row is filled up with zeros. None: all alike.
    """

    blocks: tuple[str, ...]
    weights: NDArray[np.float32]
    experts: tuple[int, ...] | None = None

    def by_block(self) -> dict[str, NDArray[np.float32]]:
        """The weights of each block's own experts, float32 `[experts]`."""
        counts = self.experts or (self.weights.shape[-1],) * len(self.blocks)
        return {block: weights[:count] for block, weights, count in zip(self.blocks, self.weights, counts, strict=True)}


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
