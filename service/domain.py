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
    computed_by: EngineDescription
    description: Mapping[str, Any] = field(default_factory=dict)
    """What `GET /models/{name}` tells of it."""
    routing_profile: RoutingProfile | None = None
    """What its routing looks like on known images; the bundle may carry it."""


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


@dataclass(frozen=True, slots=True, eq=False)
class RoutingOverrides:
    """The routing of `V` variants of one image.

    Attributes:
        weights: float32 `[V, blocks, experts]`; NaN leaves what the model itself gives, seeing what was changed before.
        uniform: bool `[V, blocks]`: whether every expert gets the mean of what the model itself gives.
    """

    weights: NDArray[np.float32]
    uniform: NDArray[np.bool_]


class Ablation(Protocol):
    """Computes one image with many routings; not thread-safe."""

    def __call__(self, row: Pixels, overrides: RoutingOverrides, *, stopped: Callable[[], bool]) -> ModelOutput | None:
        """Compute `V + 1` rows, the first of which is unchanged, with the weights used; None if `stopped` says so."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablated:
    """What an ablation found, and how long it waited and took (seconds).

    `output` is of the variants and, before them, of the image as it is.
    """

    output: ModelOutput
    queue: float
    inference: float


class Ablator(Protocol):
    """Computes ablations beside the ordinary traffic."""

    def check(self) -> None:
        """Say whether an ablation would be taken now.

        Raises:
            AblationBusy: as many as allowed are waiting already.
        """
        ...

    async def ablate(self, model: ServedModel, row: Pixels, overrides: RoutingOverrides, *, deadline: float) -> Ablated:
        """Compute a row with other routings, by `deadline` on the monotonic clock. Cancelling stops it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingProfile:
    """What a model's routing looks like on known images, to compare live traffic with.

    Attributes:
        images: how many images it is made of.
        mean: float32 `[blocks, experts]`, the mean routing weight.
        deviation: float32 `[blocks, experts]`, the standard deviation.
        histogram: int64 `[blocks, experts, bins]`, images by weight, in equal bins from 0 to 1.
        load: float32 `[blocks, experts]`, the share of images whose strongest expert this is.
        entropy: float32 `[blocks]`, the mean entropy, 0 to 1.
        classes: int64 `[K]`, ascending: the predicted classes with enough images for a profile of their own.
        class_images: int64 `[K]`, how many images each had.
        class_mean: float32 `[K, blocks, experts]`, their mean routing weights.
    """

    images: int
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    histogram: NDArray[np.int64]
    load: NDArray[np.float32]
    entropy: NDArray[np.float32]
    classes: NDArray[np.int64]
    class_images: NDArray[np.int64]
    class_mean: NDArray[np.float32]


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
