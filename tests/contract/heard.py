"""An answer as all fronts give it, whatever its protocol."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heard:
    """An answer in one shape: the status code, an error's slug, or else the classes of the images.

    `cache` is what it says of the response cache.
    """

    status: int
    slug: str | None
    classes: list[int]
    request_id: str
    cache: str | None = None
