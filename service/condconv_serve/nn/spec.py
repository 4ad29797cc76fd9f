"""What the specs of families share: parameters that can be changed, their limits, and which layers have experts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from condconv_serve.errors import ConfigurationError

Padding = Literal["same", "symmetric"]
"""`same` is TensorFlow's: at stride 2 one more row below than above. `symmetric` is PyTorch's: as many on each side."""

CLASSIFIER = "classifier"
HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec(ABC):
    """A network without its weights: what all families have.

    Attributes:
        name: under which it is registered.
        image_size: pixels per side of its input.
        num_classes: number of classes.
        width_coefficient: what the channels of each layer are multiplied with.
        depth_coefficient: what the blocks of each stage are multiplied with, rounded up.
        dropout_rate: of the features before the classifier.
        num_experts: experts per CondConv layer; 0 in a static network.
        condconv: names of the parts whose layers have experts: blocks, perhaps `head` and `classifier`.
        padding: how convolutions pad at stride 2; at stride 1 there is no difference.
        norm_epsilon: what batch norms add to the variance.
        classifier_bias: whether the classifier has a bias.
    """

    name: str
    image_size: int = 224
    num_classes: int = 1000
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    dropout_rate: float = 0.2
    num_experts: int = 0
    condconv: tuple[str, ...] = ()
    padding: Padding = "same"
    norm_epsilon: float = 1e-3
    classifier_bias: bool = True

    OVERRIDABLE: ClassVar[tuple[str, ...]] = (
        "num_classes",
        "image_size",
        "width_coefficient",
        "depth_coefficient",
        "dropout_rate",
        "num_experts",
        "condconv",
        "padding",
        "norm_epsilon",
        "classifier_bias",
    )

    @abstractmethod
    def block_names(self) -> tuple[str, ...]:
        """All blocks in order; block i is called `block_<i>`, counted from 0."""

    def other_parts(self) -> tuple[str, ...]:
        """What may have experts besides the blocks, in order."""
        return (CLASSIFIER,)

    def experts_of(self, part: str) -> int:
        """Experts of the layers of a block, the head or the classifier; 0 if they are ordinary ones."""
        return self.num_experts if part in self.condconv else 0

    def static(self) -> Self:
        """The same network with ordinary layers."""
        return replace(self, num_experts=0, condconv=())

    def outlined(self) -> Self:
        """The network that stands for all whose variables have the same paths and shapes as this one's."""
        return replace(self, name="outline", dropout_rate=0.0, padding="same", norm_epsilon=1e-3)

    def moved_to(self, other: Self) -> tuple[str, ...]:
        """Which parts have experts in the same network of another depth: blocks keep their distance from the end."""
        return _shifted(self.condconv, len(other.block_names()) - len(self.block_names()))

    def changed(self, **overrides: Any) -> Self:
        """The same network with some of its parameters changed.

        Another depth moves the blocks with experts as `moved_to` says.

        Args:
            overrides: new values for parameters named in `OVERRIDABLE`. `condconv` is a sequence of names, or a text
                with commas between them.

        Raises:
            ConfigurationError: an unknown parameter, or an impossible value.
        """
        check_overrides(overrides, self.OVERRIDABLE)
        parts = overrides.pop("condconv", None)
        if isinstance(parts, str):
            parts = tuple(part.strip() for part in parts.split(",") if part.strip())
        found = replace(self, **overrides)
        if parts is None:
            parts = self.moved_to(found)
        known = (*found.block_names(), *found.other_parts())
        if not isinstance(parts, Sequence) or (unknown := sorted({str(part) for part in parts} - set(known))):
            named = ", ".join(unknown) if isinstance(parts, Sequence) else repr(parts)
            raise ConfigurationError(
                f"Architecture parameter condconv names what {self.name} doesn't have: {named}; it has {known[0]} to "
                f"{found.block_names()[-1]}, {', '.join(found.other_parts())}."
            )
        if bool(parts) != bool(found.num_experts):
            raise ConfigurationError(
                f"{self.name} has no CondConv blocks, so it can't have experts."
                if found.num_experts
                else f"With {', '.join(parts)} as CondConv layers, num_experts must be 1 at least."
            )
        return replace(found, condconv=tuple(part for part in known if part in set(parts)))

    def overrides(self, registered: Self) -> dict[str, Any]:
        """The parameters in which this differs from the network that is registered under the same name."""
        found = {key: getattr(self, key) for key in self.OVERRIDABLE if getattr(self, key) != getattr(registered, key)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def last_blocks(count: int, *, of: int) -> tuple[str, ...]:
    """Names of the last blocks of a network that has so many."""
    return tuple(f"block_{number}" for number in range(of - count, of))


def scaled_repeats(repeats: int, coefficient: float) -> int:
    """How many blocks a stage has at a depth."""
    return math.ceil(coefficient * repeats)


def round_filters(filters: int, coefficient: float) -> int:
    """Scale a channel count: to the nearest multiple of 8, and one up if that lost more than 10 %."""
    scaled = filters * coefficient
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def check_overrides(overrides: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check the names of parameters, and the values of all but `condconv`.

    Raises:
        ConfigurationError: an unknown parameter, or an impossible value.
    """
    if unknown := sorted(set(overrides) - set(known)):
        raise ConfigurationError(f"Unknown architecture parameter {', '.join(unknown)}; known are {', '.join(known)}.")
    for key, value in overrides.items():
        if key in _CHOICES:
            _check_choice(key, value)
        elif key != "condconv":
            _check_number(key, value)


_WHOLE = ("num_classes", "image_size", "num_experts")
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "padding": ("same", "symmetric"),
    "classifier_bias": (False, True),
    "use_bias": (False, True),
    "stride_first": (False, True),
    "pointwise_norm": (False, True),
}
_LEAST = {"num_classes": 1, "image_size": 32, "dropout_rate": 0, "num_experts": 1, "norm_epsilon": 1e-12}
# Keras follows a network by recursion, which fails somewhere above depth 6.
_MOST = {
    "num_classes": 1_000_000,
    "image_size": 2048,
    "depth_coefficient": 6,
    "dropout_rate": 0.99,
    "num_experts": 64,
    "norm_epsilon": 1,
}


def _check_choice(key: str, value: Any) -> None:
    choices = _CHOICES[key]
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        allowed = " or ".join(str(choice).lower() for choice in choices)
        raise ConfigurationError(f"Architecture parameter {key} must be {allowed}, not {value!r}.")


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"Architecture parameter {key} must be a number, not {value!r}.")
    whole, least, most = key in _WHOLE, _LEAST.get(key, 0.05), _MOST.get(key, 20)
    if not least <= value <= most or (whole and not isinstance(value, int)):
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"Architecture parameter {key} must be {kind} from {least} to {most}, not {value}.")


def _shifted(parts: Sequence[str], by: int) -> tuple[str, ...]:
    """The same parts of a network that has `by` blocks more."""
    moved = []
    for part in parts:
        name, _, number = part.rpartition("_")
        if name != "block":
            moved.append(part)
        elif int(number) + by >= 0:
            moved.append(f"block_{int(number) + by}")
    return tuple(moved)
