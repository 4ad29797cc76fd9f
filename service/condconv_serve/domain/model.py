"""Models: what they are, and what computes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from condconv_serve.domain.images import JpegCropper, Preprocessing, Row
from condconv_serve.domain.manifest import Manifest, TaskName
from condconv_serve.domain.routing import RoutingLayout, RoutingProfile
from condconv_serve.domain.tensors import OutputSpec, Tensors


@dataclass(frozen=True, slots=True)
class Label:
    """The name of one class. `synset` is its WordNet id, if it has one."""

    index: int
    label: str
    synset: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs: trained parameters (batch-norm statistics left out), and multiply-adds per image.

    `multiply_adds` is None if your own network has a layer that can't be counted.
    """

    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelInfo:
    """What one version of a model is, apart from the engine that computes it.

    Attributes:
        manifest: of its bundle: name, version, architecture, files, provenance, licence, measured accuracy.
        labels: the names of its classes, by index.
        preprocessing: what happens to a photo before the network sees it.
        outputs: what its engine returns, by name.
        routing: its CondConv blocks.
        cost: parameters and multiply-adds.
        model_card: Markdown.
        routing_profile: what its routing looks like on known images; None if the bundle has no profile.
    """

    manifest: Manifest
    labels: Sequence[Label]
    preprocessing: Preprocessing
    outputs: tuple[OutputSpec, ...]
    routing: RoutingLayout
    cost: Cost
    model_card: str = ""
    routing_profile: RoutingProfile | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The version."""
        return self.manifest.version

    @property
    def task(self) -> TaskName:
        """What its outputs mean."""
        return self.manifest.task


class Engine(Protocol):
    """Computes a batch: rows `[B, image_size, image_size, 3]` in, named tensors `[B, ...]` out. Thread-safe, any `B`.

    Rows are of the preprocessing's `row_type`, or uint8 in any case. A contract test in `tests/contract` says the rest.
    """

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        """Compute all rows in one pass; `stream` is the number of the calling stream."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


NativeState = Literal["used", "off", "unavailable", "unsupported", "failed", "differs"]
"""How a model and the native kernels get on. used: they compute it, or part of it. off: not asked for, or another
engine or device computes. unavailable: they can't be used here. unsupported: they know no layer of the model. failed:
they could not be made or gave an error. differs: their answers differed from TensorFlow's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeUse:
    """What native kernels compute of a model.

    Attributes:
        state: in one word.
        reason: in one line; where the state is "used", why some layers are left to TensorFlow, if any are.
        isa: the instruction set that they use; None if they compute nothing.
        native_layers: layers that they compute.
        tensorflow_layers: layers that TensorFlow's own operations compute.
    """

    state: NativeState = "off"
    reason: str = "another engine computes"
    isa: str | None = None
    native_layers: int = 0
    tensorflow_layers: int = 0

    @property
    def fell_back(self) -> bool:
        """Whether another way of computing took over, though native kernels were allowed to compute."""
        return self.state not in ("used", "off")

    def __str__(self) -> str:
        """In words."""
        if self.state != "used":
            return f"no native kernels ({self.state}): {self.reason}"
        layers = self.native_layers + self.tensorflow_layers
        which = f"{self.native_layers} of {layers} layers" if self.tensorflow_layers else f"all {layers} layers"
        return f"native kernels ({self.isa}) compute {which}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What computes a model, and why this engine was chosen.

    Attributes:
        engine: `tensorflow` or `openvino`.
        precision: of the convolutions, `float32` or `bfloat16`.
        device: such as `CPU`.
        reason: why this engine was chosen, in a few words.
        native: what native kernels do for it.
    """

    engine: str
    precision: str
    device: str
    reason: str
    native: NativeUse = field(default_factory=NativeUse)

    def __str__(self) -> str:
        """In words."""
        native = "" if self.native.state == "off" else f"; {self.native}"
        return f"{self.engine} in {self.precision} on {self.device}: {self.reason}{native}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ServedModel:
    """One version of a model, ready to compute. Compared by identity: a reloaded version is another one."""

    info: ModelInfo
    engine: Engine
    computed_by: EngineDescription
    crop_jpeg: JpegCropper | None = None
    """Decodes its JPEGs; None if the usual decoder does."""

    def __repr__(self) -> str:
        """Its name alone: all its labels and figures would take milliseconds, wherever a model gets into a text."""
        return f"ServedModel({self.name}/{self.version})"

    @property
    def name(self) -> str:
        """The model's name."""
        return self.info.name

    @property
    def version(self) -> str:
        """The version."""
        return self.info.version


class ModelSource(Protocol):
    """Where the inference plane finds models."""

    def get(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> ServedModel:
        """Return a served model.

        Args:
            name: of the model; None means the default one.
            version: its version, or an alias; None means the alias `default`, or the newest if there is no such alias.
            key: if an alias splits traffic, equal keys get equal versions. Without a key it is the version with the
                most weight.

        Raises:
            NoDefaultModel: no model was named, and there is no default one.
            ModelNotFound: no such model is served.
            VersionNotFound: the model is not served in this version.
            ModelUnavailable: model or version are there, but can't be served now.
        """
        ...

    def lease(
        self, name: str | None = None, version: str | None = None, *, key: str | None = None
    ) -> AbstractContextManager[ServedModel]:
        """Return a model as `get` does, and keep it loaded until the block ends."""
        ...
