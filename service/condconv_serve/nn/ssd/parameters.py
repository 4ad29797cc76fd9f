"""Reads the parameters of an SSD detector from plain values, as in JSON or on the command line, and writes them so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.ssd.coding import Variances
from condconv_serve.nn.ssd.priors import MapShapes

HeadName = Literal["ssd", "ssdlite"]
"""`ssd` predicts with ordinary convolutions, `ssdlite` with depthwise separable ones, also in the extra layers."""

STRIDES = {"stride_8": 8, "stride_16": 16, "stride_32": 32}
"""Taps that any backbone has: the last of the tensors with the most channels at this stride."""


@dataclass(frozen=True, slots=True)
class ExtraArgs:
    """One extra block: a 1x1 convolution, then a 3x3 one, which makes the next feature map."""

    reduce_filters: int
    out_filters: int
    strides: int = 2


def read_parameter(key: str, value: Any) -> Any:
    """A parameter as the spec has it; one that isn't known here is taken as it is.

    Raises:
        ConfigurationError: an impossible value.
    """
    return _READERS[key](key, value) if key in _READERS else value


def plain_value(value: Any) -> Any:
    """A parameter as JSON has it."""
    if isinstance(value, ExtraArgs):
        return [value.reduce_filters, value.out_filters, value.strides]
    return [plain_value(one) for one in value] if isinstance(value, tuple) else value


def _choice(*allowed: Any) -> Callable[[str, Any], Any]:
    def read(key: str, value: Any) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            named = " or ".join(str(choice).lower() for choice in allowed)
            raise ConfigurationError(f"Architecture parameter {key} must be {named}, not {value!r}.")
        return value

    return read


def _names(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise ConfigurationError(
            f"Architecture parameter {key} must be names of layers, or {', '.join(STRIDES)}; not {value!r}."
        )
    return tuple(value)


def _extras(key: str, value: Any) -> tuple[ExtraArgs, ...]:
    found = []
    for one in _sequence(key, value):
        one = (one.reduce_filters, one.out_filters, one.strides) if isinstance(one, ExtraArgs) else one
        numbers = _sequence(key, one)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if len(numbers) != 3 or not whole or min(numbers) < 1 or max(numbers) > 4096:
            raise ConfigurationError(
                f"Architecture parameter {key} must be lists of three whole numbers: channels of the 1x1 and the 3x3 "
                f"convolution, from 1 to 4096, and the stride; not {one!r}."
            )
        if numbers[2] not in (1, 2):
            raise ConfigurationError(f"Architecture parameter {key} must have strides of 1 or 2, not {numbers[2]}.")
        found.append(ExtraArgs(*numbers))
    return tuple(found)


def _prior_boxes(key: str, value: Any) -> tuple[MapShapes, ...]:
    found = []
    for shapes in _sequence(key, value):
        own = []
        for shape in _sequence(key, shapes):
            scale, ratio = _positive(key, shape, count=2)
            own.append((scale, ratio))
        if not 1 <= len(own) <= 32:
            raise ConfigurationError(f"Architecture parameter {key} must have 1 to 32 shapes for each map.")
        found.append(tuple(own))
    return tuple(found)


def _variances(key: str, value: Any) -> Variances:
    y, x, height, width = _positive(key, value, count=4)
    return y, x, height, width


def _positive(key: str, value: Any, *, count: int) -> list[float]:
    numbers = _sequence(key, value)
    numeric = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != count or not numeric or not all(1e-3 <= number <= 1e3 for number in numbers):
        raise ConfigurationError(
            f"Architecture parameter {key} must have {count} numbers from 0.001 to 1000 each, not {value!r}."
        )
    return [float(number) for number in numbers]


def _sequence(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigurationError(f"Architecture parameter {key} must be a list, not {value!r}.")
    return value


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "taps": _names,
    "extras": _extras,
    "extra_norm": _choice(False, True),
    "condconv_extras": _choice(False, True),
    "head": _choice("ssd", "ssdlite"),
    "head_kernel": _choice(1, 3),
    "prior_boxes": _prior_boxes,
    "variances": _variances,
    "scores": _choice("softmax", "sigmoid"),
}
