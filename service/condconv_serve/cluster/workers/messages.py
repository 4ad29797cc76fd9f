"""What a front and the engine process tell each other.

A request is opened by a front. The engine process asks for each row when there is room for it, unless the front knows
that there is, and sends the rows by itself. They lie in slots of the front's shared memory. The engine process ends the
request, once, with the outcomes of all rows. From then on it doesn't touch the slots of the request, so the front may
use them again. Whatever makes no sense closes the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from condconv_serve.cluster.workers.arena import Layout, Placed
from condconv_serve.domain import Copies, EngineDescription, ModelInfo, Placement
from condconv_serve.domain.caching import CacheResult, CacheUse
from condconv_serve.domain.facts import DeadlineBy
from condconv_serve.errors import CapacityError, ServiceError
from condconv_serve.serving.unserved import Unserved
from condconv_serve.store.aliases import Alias
from condconv_serve.store.default import Default


class Logged(NamedTuple):
    """The ids of a request for the log: its own, and those of its trace."""

    request_id: str
    trace_id: str
    span_id: str
    sampled: bool


# From a front.


class NewArena(NamedTuple):
    """The front has made an arena; its file travels along. Arenas are numbered from 0, in the order of their making."""

    slot_bytes: int
    slots: int


class Open(NamedTuple):
    """A request: how urgent, until when (monotonic clock, which all processes share), and a digest for each row.

    `cache` is how it may use the response cache, if there is one. If `unasked`, the rows come without being asked for.
    """

    id: int
    model: int
    digests: tuple[bytes | None, ...]
    priority: int
    deadline: float
    by: DeadlineBy
    logged: Logged | None
    cache: CacheUse | None = None
    unasked: bool = False


class RowMade(NamedTuple):
    """A row of a request. `array` is the row itself where it lies in no slot; `seconds` is what it took.

    `copies` is what other versions need that get copies of the image.
    """

    id: int
    row: int
    seconds: float
    placement: Placement | None
    arena: int = 0
    slot: int = -1
    placed: Placed | None = None
    array: NDArray[Any] | None = None
    copies: Copies | None = None


class RowFailed(NamedTuple):
    """A row of a request can't be made."""

    id: int
    row: int
    error: ServiceError


class Cancel(NamedTuple):
    """The caller of a request or of a call has left."""

    id: int


class Released(NamedTuple):
    """The front has no more request for this copy of a model, which is served no more."""

    model: int


class Call(NamedTuple):
    """Call a function of the table in `condconv_serve.cluster.workers.calls`."""

    id: int
    name: str
    arguments: tuple[Any, ...]


class Tell(NamedTuple):
    """Call such a function without waiting for it."""

    name: str
    arguments: tuple[Any, ...]


# From the engine process.


class Welcome(NamedTuple):
    """The first message: how many slots an arena should have, so that no row has to go another way."""

    slots: int


class Make(NamedTuple):
    """There is room for a row: make it."""

    id: int
    row: int


class RowDone(NamedTuple):
    """The answer for a row. `tensors` are the tensors themselves where they lie in no slot. Times are in seconds."""

    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int
    placement: Placement | None
    cache: CacheResult | None
    layout: Layout | None
    tensors: Mapping[str, NDArray[Any]] | None = None


class Ended(NamedTuple):
    """The end of a request: each row's outcome, or the error of all of it, or neither if it was cancelled.

    `spare_rows` is how many more the queue takes now before it is half full.
    """

    id: int
    outcomes: tuple[RowDone | ServiceError, ...] = ()
    error: ServiceError | None = None
    spare_rows: int = 0


class Returned(NamedTuple):
    """What a call has returned."""

    id: int
    value: Any


class Raised(NamedTuple):
    """What a call has raised."""

    id: int
    error: ServiceError


class NewModel(NamedTuple):
    """A copy of a version. Copies are numbered, so that a version that was loaded again is another one."""

    info: ModelInfo
    computed_by: EngineDescription
    crops_jpegs: bool


class ModelsChanged(NamedTuple):
    """What is served now: numbers of copies by name and version. `new` are those that the front doesn't know yet."""

    models: Mapping[str, Mapping[str, int]]
    new: Mapping[int, NewModel]
    aliases: Mapping[str, Mapping[str, Alias]]
    unserved: Mapping[str, Unserved]
    default: Default


class ReadinessReport(NamedTuple):
    """Whether requests can be answered: what `Readiness` says."""

    refusal: CapacityError | None
    unready: CapacityError | None
    problems: list[str]
    draining: bool
