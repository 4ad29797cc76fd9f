"""The bodies of the routes that describe and manage models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from condconv_serve.domain import NativeState, ServedModel
from condconv_serve.fronts.native.schemas import MAX_NAME
from condconv_serve.fronts.native.shadow_schemas import ShadowBody, shadow_body
from condconv_serve.serving.versions import State, VersionStatus
from condconv_serve.shadow.counts import ShadowCounts
from condconv_serve.store.aliases import Alias


class VersionBody(BaseModel):
    """How one version is doing."""

    version: str
    state: State = Field(
        description="available: in the store, but not loaded. stale: serves from memory, but its files are gone or "
        "can't be loaded, so it would not be there after a restart. retiring: answers its last requests, and gets no "
        "new ones. incomplete: its files are still being copied. failed: can't be loaded."
    )
    reason: str | None = Field(
        None,
        description="Why it can't be loaded. For a version that serves: why its files can't be loaded anew.",
    )


class AliasBody(BaseModel):
    """Where an alias points."""

    versions: dict[str, int] = Field(description="Versions with their relative weights.", examples=[{"1": 90, "2": 10}])
    mirror: dict[str, int] | None = Field(
        None,
        description="Versions that get copies of its requests, with the percentage for each; absent if none does.",
        examples=[{"3": 10}],
    )
    previous: dict[str, int] | None = Field(None, description="Where it pointed before.")


class AliasRequest(BaseModel):
    """Where the alias shall point: at one version, or at several by weight; and which versions get copies."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "1"}]})

    version: str | None = Field(None, max_length=MAX_NAME, description="The only version.")
    versions: dict[str, StrictInt] | None = Field(
        None, description="Versions with their relative weights, which are whole numbers from 1 to 1000000."
    )
    mirror: dict[str, StrictInt] | None = Field(
        None,
        description="Versions that get copies of requests, up to 4, with the percentage for each: whole numbers from 1 "
        "to 100. Their answers are compared, but nobody gets them. If absent, nothing is mirrored from now on.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> AliasRequest:
        if (self.version is None) == (self.versions is None):
            raise ValueError('Give either "version" or "versions"')
        return self

    def split(self) -> dict[str, int]:
        """Versions with their relative weights."""
        return {self.version: 1} if self.version is not None else dict(self.versions or {})


class AliasesResponse(BaseModel):
    """All aliases of a model."""

    aliases: dict[str, AliasBody]


class ModelSummary(BaseModel):
    """One model of the store, served or not.

    `architecture` and the fields after it describe its newest served version.
    """

    name: str
    versions: list[str] = Field(description="Served versions, oldest first.")
    default: bool = Field(description="Whether requests that name no model get this one.")
    all_versions: list[VersionBody] = Field(description="All versions, served or not, oldest first.")
    aliases: dict[str, AliasBody] = Field(
        description="Aliases in force. The one called `default` is for requests that name no version."
    )
    task: str | None = Field(None, description="What it is for: classification or detection.")
    architecture: str | None = None
    num_classes: int | None = None
    num_experts: int | None = None


class ModelsResponse(BaseModel):
    """All models of the store."""

    models: list[ModelSummary]


class ArchitectureBody(BaseModel):
    """The network's architecture, and its parameters that differ from the registered ones."""

    model_config = ConfigDict(extra="allow")

    name: str


class OutputBody(BaseModel):
    """One output of a network."""

    name: str
    shape: list[int] = Field(description="Without the batch axis.")
    dtype: str


class NativeBody(BaseModel):
    """What native kernels compute of a model."""

    state: NativeState = Field(
        description="used: all of it or a part. off: not asked for, or another engine or device computes. unavailable: "
        "they can't be used on this machine. unsupported: they know no layer of it. failed: they couldn't be made, or "
        "gave an error. differs: their answers differed from TensorFlow's."
    )
    reason: str = Field(description="Why, in one line.")
    isa: str | None = Field(None, description="The instruction set that they use; null if they compute nothing.")
    native_layers: int = Field(description="Layers that they compute.")
    tensorflow_layers: int = Field(description="Layers that TensorFlow's own operations compute.")


class EngineBody(BaseModel):
    """What computes a model."""

    engine: str = Field(description="tensorflow or openvino.")
    precision: str = Field(description="float32 or bfloat16.")
    device: str
    reason: str = Field(description="Why this engine was chosen.")
    native: NativeBody


class ModelResponse(BaseModel):
    """One served version of a model, in full."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    versions: list[str] = Field(description="All served versions of the model, oldest first.")
    all_versions: list[VersionBody] = Field(description="All versions, served or not, oldest first.")
    aliases: dict[str, AliasBody] = Field(description="Aliases in force.")
    shadows: list[ShadowBody] = Field(
        description="Versions that got copies of requests, since an alias mirrors them; empty if none did."
    )
    task: str = Field(description="What the model is for: classification or detection.")
    outputs: list[OutputBody] = Field(description="What the network returns for each image.")
    architecture: ArchitectureBody
    parameters: int = Field(description="Trained parameters.")
    multiply_adds: int | None = Field(
        None,
        description="Multiply-adds per image, kernel mixing included; absent if a layer can't be counted.",
    )
    num_classes: int
    labels_count: int
    labels: list[str] = Field(description="The name of each class, by its index.")
    num_experts: int = Field(description="The most experts that any block has.")
    routing_blocks: list[str] = Field(description="The CondConv blocks, in order.")
    routing_experts: list[int] = Field(description="How many experts each of them has.")
    computed_by: EngineBody
    preprocessing: dict[str, Any]
    files: dict[str, dict[str, Any]] = Field(description="Size in bytes and SHA-256 of each file of the bundle.")
    provenance: dict[str, Any]
    licence: str
    accuracy: list[dict[str, Any]]
    model_card: str = Field(description="Markdown.")


def version_body(status: VersionStatus) -> VersionBody:
    """How a version is doing, as a body."""
    return VersionBody(version=status.version, state=status.state, reason=status.reason)


def alias_body(alias: Alias) -> AliasBody:
    """An alias as a body."""
    return AliasBody(versions=alias.versions, mirror=alias.mirror or None, previous=alias.previous)


def model_summary(
    name: str,
    versions: Mapping[str, ServedModel],
    *,
    default: bool,
    statuses: Sequence[VersionStatus],
    aliases: Mapping[str, Alias],
) -> ModelSummary:
    """Summarise a model by its newest served version."""
    summary = ModelSummary(
        name=name,
        versions=sorted(versions, key=int),
        default=default,
        all_versions=[version_body(status) for status in statuses],
        aliases={alias: alias_body(to) for alias, to in aliases.items()},
    )
    if not versions:
        return summary
    newest = versions[summary.versions[-1]]
    return summary.model_copy(
        update={
            "task": newest.info.task,
            "architecture": newest.info.manifest.architecture.name,
            "num_classes": len(newest.info.labels),
            "num_experts": newest.info.routing.shape[1],
        }
    )


def model_response(model: ServedModel, summary: ModelSummary, *, shadows: Iterable[ShadowCounts]) -> ModelResponse:
    """Describe one version in full, and how the versions of its model compare."""
    info = model.info
    manifest = info.manifest.model_dump(mode="json", exclude_none=True)
    return ModelResponse(
        **{key: manifest[key] for key in ModelResponse.model_fields if key in manifest},
        versions=summary.versions,
        all_versions=summary.all_versions,
        aliases=summary.aliases,
        shadows=[shadow_body(counts) for counts in shadows],
        outputs=[OutputBody(**asdict(output)) for output in info.outputs],
        parameters=info.cost.parameters,
        multiply_adds=info.cost.multiply_adds,
        labels_count=len(info.labels),
        labels=[label.label for label in info.labels],
        num_experts=info.routing.shape[1],
        routing_blocks=list(info.routing.blocks),
        routing_experts=list(info.routing.experts),
        computed_by=EngineBody(**asdict(model.computed_by)),
        model_card=info.model_card,
    )
