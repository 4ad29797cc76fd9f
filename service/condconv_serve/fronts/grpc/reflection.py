"""Server reflection: tools such as grpcurl ask the server for its services and messages."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both versions have the same messages."""


def handlers(services: Iterable[str], files: Iterable[bytes]) -> list[grpc.GenericRpcHandler]:
    """What answers reflection, in both of its versions.

    Args:
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
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES]


def _as_v1(alpha: bytes) -> bytes:
    file = descriptor_pb2.FileDescriptorProto.FromString(alpha)
    text = text_format.MessageToString(file).replace("v1alpha", "v1")
    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString()
