"""What a server says about its models. Names and meanings are those of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

Weights = Annotated[Mapping[str, Annotated[int, Field(ge=1)]], Field(min_length=1)]
"""Versions with their relative weights."""
Percentages = Mapping[str, Annotated[int, Field(ge=1, le=100)]]
"""Versions with a percentage each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionState:
    """How one version is doing.

    Attributes:
        version: its number.
        state: in one word: serving, available, loading, failed, and others that docs/versions.md explains.
        reason: why it can't be loaded.
    """

    version: str
    state: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasTarget:
    """Where an alias points: versions with their relative weights; who gets copies; and where it pointed before."""

    versions: Weights
    mirror: Percentages = field(default_factory=dict)
    previous: Weights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowComparison:
    """How the answers of a version that got copies of images compare with those that callers got.

    Attributes:
        version: whose answers callers got.
        shadow: the version that got copies.
        since: when counting began.
        images: how many were compared.
        agreement: of classifiers, the share of images with the same most probable class; of detectors, the share of
            objects that both found. None without images, as the next one.
        distance: mean distance of the answers, 0 to 1.
        routing_distance: mean absolute difference of the routing weights, by block.
        skipped: images that weren't compared, by reason; docs/versions.md lists them.
        problem: why the last copy failed that did; None if none did.
    """

    version: str
    shadow: str
    since: datetime
    images: int
    agreement: float | None = None
    distance: float | None = None
    routing_distance: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aliases:
    """All aliases of a model."""

    aliases: Mapping[str, AliasTarget]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One model of the server's store, served or not.

    Attributes:
        name: its name.
        versions: served versions, oldest first.
        default: whether requests that name no model get this one.
        all_versions: all versions, served or not, oldest first.
        aliases: those in force, by name.
        task: what its outputs mean. This and what follows is of its newest served version, or None.
        architecture: name of the architecture.
        num_classes: how many classes it knows.
        num_experts: the most experts that any block has.
    """

    name: str
    versions: tuple[str, ...]
    default: bool
    all_versions: tuple[VersionState, ...]
    aliases: Mapping[str, AliasTarget]
    task: str | None = None
    architecture: str | None = None
    num_classes: int | None = None
    num_experts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """All models of a store."""

    models: tuple[ModelSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputShape:
    """One output of a network; its shape is without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetails:
    """One served version of a model, in full.

    Attributes:
        name: the model's name.
        version: the version.
        versions: all served versions of the model, oldest first.
        all_versions: all versions, served or not, oldest first.
        aliases: those in force, by name.
        task: what its outputs mean.
        outputs: what the network returns for each image.
        architecture: its name, and the parameters that differ from the registered ones.
        parameters: how many were trained.
        num_classes: how many classes it knows.
        num_experts: the most experts that any block has.
        routing_blocks: the CondConv blocks, in order.
        routing_experts: how many experts each of them has.
        computed_by: engine, precision, device, why these, and what native kernels compute.
        preprocessing: what happens to a photo before the network sees it.
        files: size in bytes and SHA-256 of each file of the bundle.
        provenance: where the weights come from.
        licence: of the weights.
        accuracy: measured ones.
        model_card: Markdown.
        multiply_adds: per image; None if a layer can't be counted.
        labels: the name of each class, by its index.
        shadows: how the model's versions compare that got copies of requests.
    """

    name: str
    version: str
    versions: tuple[str, ...]
    all_versions: tuple[VersionState, ...]
    aliases: Mapping[str, AliasTarget]
    task: str
    outputs: tuple[OutputShape, ...]
    architecture: Mapping[str, Any]
    parameters: int
    num_classes: int
    num_experts: int
    routing_blocks: tuple[str, ...]
    routing_experts: tuple[int, ...]
    computed_by: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    licence: str
    accuracy: tuple[Mapping[str, Any], ...] = field(default=())
    model_card: str = ""
    multiply_adds: int | None = None
    labels: tuple[str, ...] = ()
    shadows: tuple[ShadowComparison, ...] = ()
