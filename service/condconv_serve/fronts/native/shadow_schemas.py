"""The bodies that say how versions compare which got copies of requests."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from condconv_serve.shadow.counts import ShadowCounts


class ShadowBody(BaseModel):
    """How the answers of a version that got copies of images (the shadow) compare with those that callers got."""

    version: str = Field(description="The version whose answers callers got.")
    shadow: str = Field(description="The version that got copies.")
    since: datetime = Field(description="When counting began: with the first copy, or the last load of either version.")
    images: int = Field(description="Images whose answers were compared.")
    agreement: float | None = Field(
        None,
        description="Mean agreement, 0 to 1. Of classifiers: the share of images with the same most probable class. Of "
        "detectors: the share of objects that both found (same class, overlap of at least 0.5). Absent without images.",
    )
    distance: float | None = Field(
        None,
        description="Mean distance of the answers, 0 to 1. Of classifiers: total variation of the probabilities. Of "
        "detectors: difference of the objects' scores.",
    )
    routing_distance: dict[str, float] = Field(
        description="By block that both have, with as many experts: mean absolute difference of the routing weights."
    )
    skipped: dict[str, int] = Field(
        description="Images that weren't compared, by reason. busy: callers' images waited for the engine, or kept it "
        "busy. full: too many copies waited. late: not computed in 10 s. paused: the version failed again and again, "
        "or hung, and is left alone for a while. not_served: it isn't served. other_task: one classifies, the other "
        "detects. other_input: it takes another input that can't be made. failed: it couldn't be computed. not_finite: "
        "its answer holds numbers that are not finite."
    )
    problem: str | None = Field(None, description="Why the last copy failed that did; absent if none did.")


def shadow_body(counts: ShadowCounts) -> ShadowBody:
    """The figures of two versions as a body."""
    images = counts.compared
    return ShadowBody(
        version=counts.version,
        shadow=counts.shadow,
        since=datetime.fromtimestamp(counts.since, UTC),
        images=images,
        agreement=counts.agreement / images if images else None,
        distance=counts.distance / images if images else None,
        routing_distance={block: total / images for block, total in counts.routing.items()} if images else {},
        skipped={outcome: n for outcome, n in counts.outcomes.items() if outcome != "compared"},
        problem=counts.problem,
    )
