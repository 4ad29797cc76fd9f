"""The server as a whole: health, reflection, TLS, its port, and its end."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc import health, server
from condconv_serve.fronts.grpc.server import GrpcLimits, GrpcServer
from condconv_serve.fronts.grpc.tls import TlsFiles
from tests.contract.fronts import House, house_with_keys
from tests.contract.grpc_calls import call, connected, grpc_served, slug_of
from tests.contract.grpc_front import NAME, PATH, rows_service
from tests.contract.until import until
from tests.unit.fronts.grpc.test_grpc_calls import ANN, rows
from tests.unit.fronts.grpc.test_grpc_streams import opened

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
async def house() -> AsyncIterator[tuple[House, AppContext]]:
    async with house_with_keys(ready=False) as found:
        yield found


async def test_health_follows_readiness(house):
    found, context = house
    async with grpc_served([rows_service(context)], context) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watched.read()).status == NOT_SERVING
        for service in ("", NAME):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == NOT_SERVING
        found.readiness.loaded()
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
        assert (await watched.read()).status == SERVING
        found.readiness.drain()
        assert (await watched.read()).status == NOT_SERVING
        watched.cancel()


async def test_a_change_between_two_looks_is_told(house, monkeypatch):
    """Whoever began to watch meanwhile heard of a state that no look has seen."""
    found, context = house
    monkeypatch.setattr(health, "_LOOK_SECONDS", 1.0)
    async with grpc_served([rows_service(context)], context) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING  # so it has looked
        found.readiness.loaded()
        watched = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watched.read()).status == SERVING
        found.readiness.drain()
        async with asyncio.timeout(60):
            assert (await watched.read()).status == NOT_SERVING
        watched.cancel()


async def test_those_who_watch_count_as_calls(house):
    found, context = house
    found.readiness.loaded()
    async with grpc_served([rows_service(context)], context, limits=GrpcLimits(max_connections=2)) as served:
        watched = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
        await watched.read()
        reflected = served.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
        await reflected.write(b"")
        await reflected.read()
        async with connected(served.port) as other:
            heard, _ = await call(other, PATH, rows(1), ANN)
            assert (heard.status, heard.slug) == (503, "too_many_connections")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest()).read()
            assert slug_of(caught.value) == "too_many_connections"
            # Probes are answered all the same.
            assert (await health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest())).status == SERVING
            watched.cancel()
            reflected.cancel()
            async with asyncio.timeout(60):
                while (await call(other, PATH, rows(1), ANN))[0].status != 200:
                    pass


async def test_health_of_services_that_there_are_not(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        with pytest.raises(grpc.aio.AioRpcError, match=f"there are: {NAME}") as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watched = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await watched.read()).status == UNKNOWN
        watched.cancel()


async def test_reflection_describes_every_service(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:

        def ask() -> tuple[list[str], list[str]]:
            with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                names = list(database.get_services())
                pool = DescriptorPool(database)
                return names, [pool.FindServiceByName(name).methods[0].full_name for name in names]

        names, methods = await asyncio.to_thread(ask)
    assert names == sorted(
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            NAME,
        ]
    )
    assert f"{NAME}.ServerLive" in methods


async def test_a_port_that_is_taken(house):
    _, context = house
    async with grpc_served([], context) as served:
        other = GrpcServer([], context, limits=GrpcLimits())
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{served.port} for gRPC"):
            async with other.serving("127.0.0.1", served.port):
                pass


async def test_the_end_answers_what_has_begun_and_refuses_the_rest(house):
    found, context = house
    found.readiness.loaded()
    async with grpc_served([rows_service(context)], context) as served:
        stream, idle = opened(served), opened(served)
        await idle.write(rows(0))
        await idle.read()
        found.free.clear()
        first = asyncio.create_task(call(served.channel, PATH, rows(1), ANN))
        await stream.write(rows(2))
        await until(lambda: found.batcher.submitted == 3)
        served.server.stop(60)
        await asyncio.sleep(0.05)
        async with connected(served.port) as other:
            assert (await call(other, PATH, rows(3), ANN))[0].status == 503
        found.free.set()
        assert (await first)[0].status == 200
        await stream.read()
        for ended in (stream, idle):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ended.read()
            assert (caught.value.code(), slug_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "draining")
    assert found.read("condconv_rejected_total", reason="draining") is None


async def test_the_end_does_not_wait_for_those_who_watch(house):
    found, context = house
    found.readiness.loaded()
    async with grpc_served([rows_service(context)], context) as served:
        watched = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
        reflected = served.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
        assert (await watched.read()).status == SERVING
        await reflected.wait_for_connection()
        found.readiness.drain()
        async with asyncio.timeout(60):
            served.server.stop(600)
            assert (await watched.read()).status == NOT_SERVING
            assert await watched.read() is grpc.aio.EOF
            assert await reflected.read() is grpc.aio.EOF


@pytest.mark.slow
async def test_what_cant_be_answered_in_time_is_told_so(house, monkeypatch):
    monkeypatch.setattr(server, "_LAST_ANSWERS_SECONDS", 60.0)  # half of all the time, so that none is late
    found, context = house
    found.readiness.loaded()
    found.free.clear()
    started = time.monotonic()
    async with grpc_served([rows_service(context)], context) as served:
        first = asyncio.create_task(call(served.channel, PATH, rows(1), ANN))
        await until(lambda: found.batcher.submitted == 1)
        served.server.stop(8)
        heard, _ = await first
        assert (heard.status, heard.slug) == (503, "draining")
    assert time.monotonic() - started < 60


@pytest.fixture
def tls(tmp_path: Path) -> tuple[trustme.CA, TlsFiles]:
    authority = trustme.CA()
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    write(authority, files)
    authority.cert_pem.write_to_path(str(files.client_ca))
    return authority, files


def write(authority: trustme.CA, files: TlsFiles) -> None:
    own = authority.issue_cert("localhost")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    own.private_key_pem.write_to_path(str(files.key))


async def asked(port: int, *, authority: trustme.CA, client: trustme.LeafCert | None = None) -> int:
    """The status over a new connection with TLS."""
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        *((client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()) if client else ()),
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        return (await call(channel, PATH, rows(1), ANN))[0].status


async def test_tls_with_certificates_of_clients(house, tls):
    found, context = house
    found.readiness.loaded()
    authority, files = tls
    encrypted = GrpcServer([rows_service(context)], context, limits=GrpcLimits(), tls=files)
    async with encrypted.serving("localhost", 0) as port:
        assert await asked(port, authority=authority, client=authority.issue_cert("me@example.org")) == 200
        assert await asked(port, authority=authority) == 503, "without a certificate"
        assert await asked(port, authority=trustme.CA(), client=authority.issue_cert("me@example.org")) == 503


async def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(house, tls, caplog):
    found, context = house
    found.readiness.loaded()
    authority, files = tls
    files = TlsFiles(files.certificate, files.key)
    encrypted = GrpcServer([rows_service(context)], context, limits=GrpcLimits(), tls=files)
    async with encrypted.serving("localhost", 0) as port:
        assert await asked(port, authority=authority) == 200
        renewed = trustme.CA()
        write(renewed, files)
        assert await asked(port, authority=renewed) == 200
        files.key.write_text("broken")
        assert await asked(port, authority=renewed) == 200
    assert any("the old one stays in force" in record.message for record in caplog.records)


def test_files_that_are_no_certificate(house, tls):
    _, context = house
    _, files = tls
    shutil.copy(files.certificate, files.key)

    async def serve() -> None:
        async with GrpcServer([], context, limits=GrpcLimits(), tls=files).serving("localhost", 0):
            pass

    with pytest.raises(ConfigurationError, match="can't be used for TLS"):
        asyncio.run(serve())


async def test_a_client_that_says_nothing_is_dropped(house):
    _, context = house
    async with grpc_served([], context, limits=GrpcLimits(handshake_timeout=0.1)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        async with asyncio.timeout(60):
            while await reader.read(1024):
                pass
        writer.close()


async def test_more_connections_than_allowed_are_closed(house):
    found, context = house
    found.readiness.loaded()
    async with grpc_served([rows_service(context)], context, limits=GrpcLimits(max_connections=1)) as served:
        assert (await call(served.channel, PATH, rows(1), ANN))[0].status == 200
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as another:
            assert another.recv(1) == b""
