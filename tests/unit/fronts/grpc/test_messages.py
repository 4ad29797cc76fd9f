"""Messages in pools of their own."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from condconv_serve.errors import BodyTooLarge
from condconv_serve.fronts.grpc.compile_protos import FOLDER
from condconv_serve.fronts.grpc.messages import MAX_ENTRIES, MessageSet, check_entries

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


INFER = MessageSet("open_inference").message("inference.ModelInferRequest")
CLASSIFY = MessageSet("tensorflow_serving").message("tensorflow.serving.ClassificationRequest")


def many(count: int, *, of: str):
    """A message with a number of entries."""
    message, classified = INFER(), CLASSIFY()
    match of:
        case "messages":
            for _ in range(count):
                message.outputs.add()
        case "bytes":
            message.raw_input_contents.extend([b""] * count)
        case "map":
            for place in range(count):
                message.parameters[str(place)].bool_param = True
        case "inside":  # two entries are the input and the parameter
            message.inputs.add().contents.bytes_contents.extend([b""] * (count - 2))
            message.parameters["a"].bool_param = True
        case "inside a map":  # one entry is the example, one the feature
            feature = classified.input.example_list.examples.add().features.feature["a"]
            feature.bytes_list.value.extend([b""] * (count - 2))
            return classified
    return message


@pytest.mark.parametrize("kind", ["messages", "bytes", "map", "inside", "inside a map"])
def test_messages_may_have_so_many_entries(kind):
    check_entries(many(MAX_ENTRIES, of=kind))
    with pytest.raises(BodyTooLarge, match=f"more than {MAX_ENTRIES} entries"):
        check_entries(many(MAX_ENTRIES + 1, of=kind))


def test_numbers_are_no_entries():
    message = INFER()
    message.inputs.add(shape=[1] * 2 * MAX_ENTRIES).contents.fp32_contents.extend([0.5] * 2 * MAX_ENTRIES)
    check_entries(message)
