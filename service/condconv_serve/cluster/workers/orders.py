"""What the supervising process and its children tell each other, over a link that each child is born with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from condconv_serve.errors import ServiceError
from condconv_serve.settings import Settings

# To a child.


class StartEngine(NamedTuple):
    """Be the engine process."""

    settings: Settings


class StartFront(NamedTuple):
    """Be front `number`, from 1, of `fronts`, and count in files of a directory.

    The listener travels along, and after it that of metrics and probes, if there is one.
    """

    settings: Settings
    number: int
    fronts: int
    metrics: Path
    open_admin: bool
    probes: bool


class Connect(NamedTuple):
    """Here is one end of a connection between a front and the engine process; it travels along."""


class Drain(NamedTuple):
    """Be ready no more: the service is about to end."""


class LookAgain(NamedTuple):
    """Look at keys and model store again."""


class Stop(NamedTuple):
    """End as a signal of this number asks for."""

    signal: int


# From a child.


class Alive(NamedTuple):
    """The child's event loop runs; said now and then."""


class Started(NamedTuple):
    """The child serves: a front listens, and an engine process has loaded its models."""


class Disconnected(NamedTuple):
    """The front's connection with the engine process has ended, and it was not the front that ended it."""


class Failed(NamedTuple):
    """The child can't serve, and ends."""

    error: ServiceError
