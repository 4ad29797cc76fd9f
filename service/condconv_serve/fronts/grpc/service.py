"""What a protocol over gRPC consists of, as values: services, their methods, and the calls that methods answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.errors import ServiceError

Access = Literal["open", "predict", "admin"]
"""Who may call a method: everybody, or keys with this scope."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is being answered.

    Attributes:
        facts: of the request; the method adds to them.
        metadata: what the client sent along, by name in lower case; values that are bytes are left out.
        ends: when the client stops waiting; None if it didn't say.
    """

    facts: RequestFacts
    metadata: Mapping[str, str]
    ends: Deadline | None = None

    def deadline(self, allowed: Deadline) -> Deadline:
        """The sooner of the client's own end and the one that the gatekeeper allows."""
        return allowed if self.ends is None else min(self.ends, allowed)


Answer = Callable[[Any, Call], Awaitable[Any]]
"""Answers a message with a message; raises `ServiceError` to refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method with one message in and one out.

    Attributes:
        request: class of the message that comes in.
        answer: answers it.
        access: who may call it.
        before_body: refuses a call before its message is received, if that is already clear.
        quiet: whether its calls are probes, which are logged at level debug and leave no trace.
    """

    request: Any
    answer: Answer
    access: Access = "predict"
    before_body: Callable[[Call], Awaitable[None]] | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMethod:
    """A method whose stream holds requests that are independent of each other, answered in order.

    Attributes:
        request: class of the messages that come in.
        answer: answers one of them. Several may be answered at once.
        failed: makes an answer of an error; None ends the stream with the error's status. It gets the message that
            failed, or None if it couldn't be read.
        access: who may call it.
    """

    request: Any
    answer: Answer
    failed: Callable[[ServiceError, Any, Call], Any | None]
    access: Access = "predict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service.

    Attributes:
        name: with its package, such as `inference.GRPCInferenceService`.
        front: name of the front in metrics.
        methods: by name.
        files: serialised descriptors of the files that describe it, for reflection; see `MessageSet.files`.
    """

    name: str
    front: str
    methods: Mapping[str, Method | StreamMethod]
    files: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Where calls go, as metrics and the log name it: the path of a method, and its front. `quiet` ones are probes."""

    path: str
    front: str
    quiet: bool = False
