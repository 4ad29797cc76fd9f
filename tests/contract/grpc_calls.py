"""A gRPC server of some services over a real socket, and calls to it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc.server import GrpcLimits, GrpcServer
from condconv_serve.fronts.grpc.service import Service
from condconv_serve.fronts.grpc.status import DETAILS_KEY, HTTP_STATUS
from tests.contract.heard import Heard


@dataclass(frozen=True)
class Served:
    """A server, its port, and a channel to it."""

    server: GrpcServer
    port: int
    channel: grpc.aio.Channel


@contextlib.asynccontextmanager
async def grpc_served(
    services: Sequence[Service], context: AppContext, *, limits: GrpcLimits | None = None
) -> AsyncIterator[Served]:
    """Serve, and connect."""
    server = GrpcServer(services, context, limits=limits or GrpcLimits())
    async with server.serving("127.0.0.1", 0) as port, connected(port) as channel:
        yield Served(server, port, channel)


def connected(port: int) -> grpc.aio.Channel:
    """A channel of its own connection."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port that is taken for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


async def call(
    channel: grpc.aio.Channel, path: str, request: Any, headers: dict[str, str] | None = None, **options: Any
) -> tuple[Heard, bytes | None]:
    """Call a method; the answer's bytes are None if it is an error."""
    metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
    pending: Any = channel.unary_unary(path)(request.SerializeToString(), metadata=metadata, **options)
    try:
        data = await pending
    except grpc.aio.AioRpcError as error:
        return heard_of(error), None
    trailing = dict(tuple(await pending.trailing_metadata()))
    return Heard(200, None, [], str(trailing["x-request-id"]), trailing.get("cache-status")), data


def heard_of(error: grpc.aio.AioRpcError) -> Heard:
    """An error as all fronts have it."""
    trailing = dict(tuple(error.trailing_metadata()))
    return Heard(HTTP_STATUS[error.code()], slug_of(error), [], str(trailing.get("x-request-id", "")))


def slug_of(error: Any) -> str | None:
    """The slug in an error's details; None if there is none."""
    info = detail_of(error, ErrorInfo())
    return None if info is None else str(info.reason)


def retry_of(error: Any) -> float | None:
    """Seconds after which to try again; None if it isn't said."""
    info = detail_of(error, RetryInfo())
    return None if info is None else info.retry_delay.ToTimedelta().total_seconds()


def detail_of(error: Any, kind: Any) -> Any:
    """The detail of a kind; None if there is none."""
    status = Status.FromString(dict(tuple(error.trailing_metadata())).get(DETAILS_KEY, b""))
    return next((kind for detail in status.details if detail.Unpack(kind)), None)
