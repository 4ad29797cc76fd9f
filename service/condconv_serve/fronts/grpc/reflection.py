"""Server reflection: tools such as grpcurl ask the server for its services and messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor_pool import DescriptorPool
from grpc.aio import ServicerContext
from grpc_reflection.v1alpha import reflection, reflection_pb2

from condconv_serve.fronts.grpc.calls import Calls

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both versions have the same messages."""


def handlers(calls: Calls, services: Iterable[str], files: Iterable[bytes]) -> list[grpc.GenericRpcHandler]:
    """What answers reflection, in both of its versions. It ends when the server takes no more calls.

    Args:
        calls: of the server.
        services: names of the services to show.
        files: serialised descriptors of all files that they need, those that are imported first.
    """
    pool, known = DescriptorPool(), set[str]()
    alpha = reflection_pb2.DESCRIPTOR.serialized_pb
    for data in (*files, alpha, _as_v1(alpha)):
        name = descriptor_pb2.FileDescriptorProto.FromString(data).name
        if name not in known:
            known.add(name)
            pool.AddSerializedFile(data)
    servicer = reflection.aio.ReflectionServicer([*services, *NAMES], pool=pool)

    async def info(requests: Any, context: ServicerContext[Any, Any]) -> None:
        async def answer() -> None:
            async for response in servicer.ServerReflectionInfo(requests, context):
                await context.write(response)

        await calls.unbooked(context, lambda: calls.until_stop(answer()))

    method = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES]


def _as_v1(alpha: bytes) -> bytes:
    file = descriptor_pb2.FileDescriptorProto.FromString(alpha)
    text = text_format.MessageToString(file).replace("v1alpha", "v1")
    renamed: bytes = text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString()
    return renamed
