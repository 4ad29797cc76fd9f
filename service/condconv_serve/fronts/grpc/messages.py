"""The messages of a protocol, kept apart from everybody else's, and how much one of them may hold.

Client libraries and TensorFlow register messages of the same names in protobuf's default pool, where a name can mean
only one thing. So each protocol has a pool of its own here: a process may hold our `inference.ModelInferRequest` beside
that of `tritonclient`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from condconv_serve.errors import BodyTooLarge

MAX_ENTRIES = 10_000
"""Most entries of a message's lists and maps, not counting numbers. An empty one takes two bytes: those of a message of
the size that is allowed would hold up everybody for minutes."""


class MessageSet:
    """The messages and services of one protocol.

    Attributes:
        files: their descriptors, serialised; a file comes after those that it imports.
    """

    def __init__(self, name: str) -> None:
        """Read `protos/<name>.binpb`, which `make protos` makes of the files below `protos/<name>/`."""
        data = (files(__package__) / "protos" / f"{name}.binpb").read_bytes()
        found = descriptor_pb2.FileDescriptorSet.FromString(data)
        self.files = tuple(file.SerializeToString() for file in found.file)
        self._pool = DescriptorPool()
        for file in self.files:
            self._pool.AddSerializedFile(file)

    def message(self, name: str) -> Any:
        """The class of a message, by its full name such as `inference.ModelInferRequest`.

        Raises:
            KeyError: there is no such message.
        """
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))

    def methods(self, service: str) -> dict[str, MethodDescriptor]:
        """The methods of a service, by name; `service` is its full name.

        Raises:
            KeyError: there is no such service.
        """
        return dict(self._pool.FindServiceByName(service).methods_by_name)


def check_entries(message: Message) -> None:
    """Refuse a message that holds more than `MAX_ENTRIES` entries.

    Raises:
        BodyTooLarge: it does.
    """
    if _entries(message, MAX_ENTRIES) > MAX_ENTRIES:
        raise BodyTooLarge(
            f"The message has more than {MAX_ENTRIES} entries in its lists and maps, the most that is allowed."
        )


def _entries(message: Message, most: int) -> int:
    """How many entries a message and those in it have; more than `most` aren't counted to their end."""
    count = 0
    for field, value in message.ListFields():
        inner: Any = ()
        if isinstance(value, Message):
            inner = (value,)
        elif isinstance(value, str | bytes) or not hasattr(value, "__len__"):
            continue
        elif field.message_type is not None:
            count += len(value)
            inner = value.values() if hasattr(value, "values") else value
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            count += len(value)
        for each in inner if count <= most else ():
            if isinstance(each, Message):
                count += _entries(each, most - count)
            if count > most:
                return count
    return count
