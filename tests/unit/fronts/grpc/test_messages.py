"""Messages in pools of their own."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from condconv_serve.fronts.grpc.compile_protos import FOLDER
from condconv_serve.fronts.grpc.messages import MessageSet

SETS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", SETS)
def test_every_set_can_be_used(name):
    found = MessageSet(name)
    files = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in found.files]
    services = [f"{file.package}.{service.name}" for file in files for service in file.service]
    assert services
    for service in services:
        for method in found.methods(service).values():
            kind = found.message(method.input_type.full_name)
            assert kind.FromString(kind().SerializeToString()) == kind()


def test_others_may_have_messages_of_the_same_names():
    theirs = descriptor_pb2.FileDescriptorProto(name="theirs.proto", package="inference", syntax="proto3")
    theirs.message_type.add(name="ModelInferRequest").field.add(name="other", number=1, type=5, label=1)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(theirs.SerializeToString())
    name = "inference.ModelInferRequest"
    other = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    own = MessageSet("open_inference").message(name)
    assert (other(other=5).other, own(model_name="a").model_name) == (5, "a")


def test_a_name_that_there_is_not():
    with pytest.raises(KeyError):
        MessageSet("open_inference").message("inference.Nothing")
