"""How a request may use the response cache, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CacheResult = Literal["hit", "shared", "miss", "bypass"]
"""Where an image's answer came from. hit: the cache. shared: it was computed for an equal image of another request, or
of the same one, that came just before. miss: it was computed. bypass: it was computed since its sender wanted no answer
from the cache."""

FROM_CACHE: frozenset[CacheResult] = frozenset({"hit", "shared"})
"""Results of images for which nothing was computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """How one request may use the response cache.

    Attributes:
        scope: whose answers it may get. Requests with the same scope see each other's; others never do.
        max_age: the oldest answer that it takes from the cache, in seconds; 0 means none.
        store: whether its own answers may be kept.
        only: whether it takes answers from the cache alone; what isn't there is an error.
    """

    scope: str
    max_age: float = math.inf
    store: bool = True
    only: bool = False
