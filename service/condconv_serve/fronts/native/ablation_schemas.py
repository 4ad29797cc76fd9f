"""The bodies of `POST /routing/ablation`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from condconv_serve.domain import RoutingChange, Variant
from condconv_serve.fronts.native.detection_schemas import DetectorParameters
from condconv_serve.fronts.native.schemas import (
    MAX_NAME,
    VERSION,
    ClassBody,
    JsonObject,
    ModelReference,
    NoBoolean,
    RoutingBody,
    Whole,
    class_body,
    routing_body,
)
from condconv_serve.tasks.ablation import MAX_VARIANTS, VariantAnswer

MAX_CHANGES = 64
"""Most changes in a variant."""

MAX_ENTRIES = 1024
"""Longest list of blocks, or of experts or weights of a block."""


def _at_most(limit: int) -> BeforeValidator:
    """Refuses a list for its length before its entries are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and len(value) > limit:
            raise ValueError(f"these are {len(value)} entries; there may be 1 to {limit}")
        return value

    return BeforeValidator(check)


_Entries = _at_most(MAX_ENTRIES)


class ChangeBody(JsonObject):
    """A change to one block's routing."""

    block: str = Field(max_length=MAX_NAME, description="Name of the block, or `all`.")
    off: Annotated[list[Whole] | None, _Entries] = Field(
        None, min_length=1, description="Experts whose weight becomes 0."
    )
    uniform: Literal[True] | None = Field(
        None, description="Give every expert the mean of the weights that the block has for this image."
    )
    weights: Annotated[list[Annotated[float, Field(ge=0, le=1), NoBoolean] | None] | None, _Entries] = Field(
        None, description="A weight from 0 to 1 for each expert; null keeps the weight that the model computes."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> ChangeBody:
        if sum(value is not None for value in (self.off, self.uniform, self.weights)) != 1:
            raise ValueError("give exactly one of off, uniform and weights")
        return self

    def to_domain(self) -> RoutingChange:
        """The change as the task takes it."""
        return RoutingChange(
            block=self.block,
            off=None if self.off is None else tuple(self.off),
            uniform=bool(self.uniform),
            weights=None if self.weights is None else tuple(self.weights),
        )

    @classmethod
    def of(cls, change: RoutingChange) -> ChangeBody:
        """A change as JSON has it."""
        return cls(
            block=change.block,
            off=None if change.off is None else list(change.off),
            uniform=True if change.uniform else None,
            weights=None if change.weights is None else list(change.weights),
        )


class RequestedVariant(JsonObject):
    """One routing to try: changes to some blocks.

    The others compute their routing as usual, from the changed features.
    """

    changes: Annotated[list[ChangeBody], _at_most(MAX_CHANGES)] = Field(
        min_length=1, description="Applied in this order, if several change the same block."
    )
    name: str | None = Field(None, max_length=MAX_NAME, description="Returned with the answer.")

    def to_domain(self) -> Variant:
        """The variant as the task takes it."""
        return Variant(changes=tuple(change.to_domain() for change in self.changes), name=self.name or "")


def _json(value: Any) -> Any:
    """Fields of forms and queries hold JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from error


def _list(value: Any) -> Any:
    """Take a list also as what commas separate, or as JSON."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    return _json(value)


class _CommonParameters(DetectorParameters):
    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=MAX_NAME, description="Name of the model; the default one if absent.")
    version: str | None = Field(None, max_length=MAX_NAME, description=VERSION)
    uniform: bool = Field(True, description="Whether to try uniform routing, too, in each of the blocks.")
    routing: bool = Field(False, description="Whether to return the routing weights of each variant.")
    timeout_ms: int | None = Field(None, ge=1, description="As for `/predict`.")


class AblationQuery(_CommonParameters):
    """Parameters in the query. Write lists with commas, or as JSON."""

    blocks: str | None = Field(
        None, description="Names of the blocks whose experts are switched off one at a time; all if absent."
    )
    experts: str | None = Field(None, description="Which experts to switch off in these blocks; all if absent.")
    variants: str | None = Field(
        None, description="Try exactly these routings, as JSON, instead of switching experts off one at a time."
    )


class AblationParameters(_CommonParameters):
    """All parameters of an ablation, from the query or from fields of a JSON or form body."""

    blocks: Annotated[list[str] | None, _Entries, BeforeValidator(_list)] = Field(None, min_length=1)
    experts: Annotated[list[Whole] | None, _Entries, BeforeValidator(_list)] = Field(None, min_length=1)
    variants: Annotated[list[RequestedVariant] | None, _at_most(MAX_VARIANTS), BeforeValidator(_json)] = Field(
        None, min_length=1
    )


class VariantBody(BaseModel):
    """What the answer would have been."""

    name: str = Field(description="The name that you gave, or one such as `block_8 without expert 2`.")
    changes: list[ChangeBody]
    probability: float = Field(description="Probability of the class that is the best one with the original routing.")
    difference: float = Field(description="How much higher that is than with the original routing.")
    top: ClassBody = Field(description="The most probable class with this routing.")
    same_top: bool = Field(description="Whether it is the same class as with the original routing.")
    routing: RoutingBody | None = Field(None, description="The routing weights that were used, in all blocks.")


class AblationTimingsBody(BaseModel):
    """Where the time went, in milliseconds."""

    decode: float
    queue: float = Field(description="Waiting for other ablations.")
    inference: float
    total: float


class AblationResponse(BaseModel):
    """What the answer would have been with other routings."""

    model: ModelReference
    id: str
    filename: str | None = None
    top: ClassBody = Field(description="The most probable class with the original routing.")
    routing: RoutingBody = Field(description="The routing as it is.")
    variants: list[VariantBody] = Field(description="In the order of your variants, or else by block and expert.")
    timings_ms: AblationTimingsBody


def variant_body(found: VariantAnswer, *, routing: bool) -> VariantBody:
    """One variant as a body."""
    return VariantBody(
        name=found.variant.name,
        changes=[ChangeBody.of(change) for change in found.variant.changes],
        probability=found.probability,
        difference=found.difference,
        top=class_body(found.top),
        same_top=found.same_top,
        routing=routing_body(found.routing) if routing else None,
    )
