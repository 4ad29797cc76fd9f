"""The messages of a protocol, kept apart from everybody else's.

Client libraries and TensorFlow register messages of the same names in protobuf's default pool, where a name can mean
only one thing. So each protocol has a pool of its own here: a process may hold our `inference.ModelInferRequest` beside
that of `tritonclient`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool


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
