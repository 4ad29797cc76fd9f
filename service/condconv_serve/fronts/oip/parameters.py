"""Parameters of requests, inputs and outputs, the same in REST and gRPC. Unknown ones are ignored, as Triton does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condconv_serve.domain.facts import Deadline
from condconv_serve.errors import InvalidParameter, NotSupported
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.oip.shown import shown
from condconv_serve.fronts.thresholds import thresholds_of
from condconv_serve.inference.batching import Priority
from condconv_serve.tasks.detection import Detect

Parameters = Mapping[str, Any]
"""Values are text, whole numbers, other numbers, true or false."""

PRIORITIES = {0: "normal", 1: "high", 2: "normal", 3: "low"}
"""Triton's levels: 1 is the highest, 0 the default."""
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParameters:
    """The parameters of a request that mean something here.

    Attributes:
        priority: high, normal or low.
        timeout: microseconds that the caller waits; None means the server's longest.
        binary_data_output: whether outputs are binary unless they say otherwise.
        detect: what counts as an object; None if the request doesn't say.
    """

    priority: str = "normal"
    timeout: int | None = None
    binary_data_output: bool = False
    detect: Detect | None = None

    def deadline(self, gatekeeper: Gatekeeper) -> Deadline:
        """When a request that starts now must be answered.

        Raises:
            InvalidParameter: the caller would wait for longer than the server allows.
        """
        longest = int(gatekeeper.request_timeout * 1e6)
        if self.timeout is None:
            return gatekeeper.deadline()
        if self.timeout > longest:
            raise InvalidParameter(f"timeout may be at most {longest} microseconds, not {self.timeout}.")
        return gatekeeper.deadline(self.timeout / 1e3)


def parameters_of(value: Any, *, of: str) -> Parameters:
    """Check that something is an object of parameters.

    Args:
        value: what was sent; None means no parameters.
        of: whose they are, for the message: `the request`, `input pixels`.

    Raises:
        InvalidParameter: it is no object, or holds something else than text, numbers, true and false.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidParameter(f"The parameters of {of} must be an object.")
    for name, entry in value.items():
        if not isinstance(entry, str | int | float):  # bool is an int
            raise InvalidParameter(f"The parameter {shown(name)} of {of} must be text, a number, true or false.")
    return value


def request_parameters(value: Any) -> RequestParameters:
    """Read the parameters of a request.

    Raises:
        InvalidParameter: says which one is wrong and what is allowed.
    """
    parameters = parameters_of(value, of="the request")
    return RequestParameters(
        priority=_priority(parameters.get("priority", 0)),
        timeout=_whole(parameters.get("timeout", 0), "timeout", of="the request, in microseconds,") or None,
        binary_data_output=_flag(parameters, "binary_data_output", of="the request", default=False),
        detect=thresholds_of(parameters),
    )


def input_parameters(value: Any, *, name: str) -> Parameters:
    """Read the parameters of an input.

    Raises:
        InvalidParameter: they are none. NotSupported: they ask for shared memory.
    """
    parameters = parameters_of(value, of=f"input {name}")
    refuse_shared_memory(parameters, of=f"input {name}")
    return parameters


def binary_data_size(parameters: Parameters, *, name: str) -> int | None:
    """How many bytes of an input stand behind the JSON; None if its data is in the JSON.

    Raises:
        InvalidParameter: it is no size.
    """
    if "binary_data_size" not in parameters:
        return None
    return _whole(parameters["binary_data_size"], "binary_data_size", of=f"input {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParameters:
    """The parameters of an output.

    Attributes:
        binary_data: whether it is returned behind the JSON.
        classification: how many classes to return as text in place of the tensor; 0 means the tensor.
    """

    binary_data: bool
    classification: int = 0


def output_parameters(value: Any, *, name: str, binary: bool = False) -> OutputParameters:
    """Read the parameters of a requested output.

    Args:
        value: what was sent.
        name: of the output.
        binary: whether it is binary if it doesn't say.

    Raises:
        InvalidParameter: one is wrong. NotSupported: one asks for shared memory.
    """
    of = f"output {name}"
    parameters = parameters_of(value, of=of)
    refuse_shared_memory(parameters, of=of)
    return OutputParameters(
        binary_data=_flag(parameters, "binary_data", of=of, default=binary),
        classification=_whole(parameters.get("classification", 0), "classification", of=of),
    )


def refuse_shared_memory(parameters: Parameters, *, of: str) -> None:
    """Refuse parameters of Triton's shared memory extension.

    Raises:
        NotSupported: there are some.
    """
    if any(name in parameters for name in _SHARED_MEMORY):
        raise NotSupported(f"{of[0].upper()}{of[1:]} asks for shared memory. {NO_SHARED_MEMORY}")


NO_SHARED_MEMORY = "This server doesn't read or write its clients' shared memory; send the data in the request."


def _priority(value: Any) -> str:
    if isinstance(value, str) and value.upper() in Priority.__members__:
        return value.lower()
    if type(value) is int and value in PRIORITIES:
        return PRIORITIES[value]
    raise InvalidParameter(f"priority may be 1 (high), 2 (normal), 3 (low), or 0 for normal, not {shown(value)}.")


def _whole(value: Any, name: str, *, of: str) -> int:
    if type(value) is not int or value < 0:
        raise InvalidParameter(f"{name} of {of} must be a whole number of at least 0, not {shown(value)}.")
    return value


def _flag(parameters: Parameters, name: str, *, of: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidParameter(f"{name} of {of} must be true or false, not {shown(value)}.")
    return value
