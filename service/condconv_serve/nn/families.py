"""Families of networks. Each registers its architectures and its builder here, where all other code finds them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import keras

from condconv_serve.domain import TaskName
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.outline import outline
from condconv_serve.nn.published import Published
from condconv_serve.nn.spec import NetworkSpec

Spec = TypeVar("Spec", bound="Architecture")


Shapes = Mapping[str, Sequence[int]]
"""Shape of each variable by its path."""


class Architecture(Protocol):
    """A network without its weights, as a frozen value that can be hashed."""

    @property
    def name(self) -> str:
        """Its name, under which it is registered."""
        ...

    @property
    def image_size(self) -> int:
        """Pixels per side of its input."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def num_experts(self) -> int:
        """Experts per CondConv layer; 0 in a static network."""
        ...

    def static(self: Spec) -> Spec:
        """The same network with ordinary layers."""
        ...

    def changed(self: Spec, **overrides: Any) -> Spec:
        """The same network with some of its parameters changed.

        Raises:
            ConfigurationError: an unknown parameter, or an impossible value.
        """
        ...

    def overrides(self: Spec, registered: Spec) -> Mapping[str, Any]:
        """The parameters in which this differs from the network that is registered under the same name."""
        ...


def classes_of_logits(_: Architecture, shapes: Shapes) -> int | None:
    """How many classes a classifier's weights have; None if there is no last layer."""
    shape = shapes.get("logits/bias") or shapes.get("logits/kernel")
    return shape[-1] if shape and shape[-1] else None


@dataclass(frozen=True, slots=True)
class Family:
    """A family of networks.

    Attributes:
        name: of the family.
        architectures: all that are registered.
        build: `build(architecture, input_size=pixels or None)` returns a functional model with fresh weights. It takes
            normalised pixels float32 `[B, S, S, 3]` and returns `{"logits": [B, num_classes], "routing": {block: [B,
            experts]}}`; a static network's `routing` is empty. It adds `"features": [B, features]` if no dense layer
            or 1x1 convolution makes the logits of them: otherwise they are what that layer reads. A detector returns
            `boxes` `[B, anchors, 4]` and `scores` `[B, anchors, num_classes]` for `logits`.
        published: how weights of such networks are published, for the importers.
        task: what the networks are for.
        count_classes: tells how many classes weights have that may be an architecture's; None if they don't show it.
    """

    name: str
    architectures: Sequence[Architecture]
    build: Callable[..., keras.Model]
    published: Sequence[Published] = ()
    task: TaskName = "classification"
    count_classes: Callable[[Any, Shapes], int | None] = classes_of_logits


_families: dict[str, Family] = {}
_architectures: dict[str, Architecture] = {}
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(_architectures)
"""Every registered architecture by name."""


def register(family: Family) -> None:
    """Make a family's architectures known to bundles, importers, and the command line.

    Raises:
        ValueError: one of its names is taken.
    """
    for architecture in family.architectures:
        if architecture.name in _architectures:
            raise ValueError(f"There is an architecture {architecture.name!r} already.")
    for architecture in family.architectures:
        _architectures[architecture.name] = architecture
        _families[architecture.name] = family


def unregister(family: Family) -> None:
    """Undo `register`."""
    for architecture in family.architectures:
        del _architectures[architecture.name], _families[architecture.name]


def get_architecture(name: str, **overrides: Any) -> Architecture:
    """Return a registered architecture, with some of its parameters changed.

    Args:
        name: a key of `ARCHITECTURES`.
        overrides: new values for some of its parameters; each family has its own.

    Raises:
        ConfigurationError: unknown name or parameter, or an impossible value.
    """
    if name not in _architectures:
        raise ConfigurationError(f"Unknown architecture {name!r}; known are {', '.join(_architectures)}.")
    return _architectures[name].changed(**overrides)


def family_of(architecture: Architecture) -> Family:
    """The family that an architecture is registered with."""
    return _families[architecture.name]


def build_network(architecture: Architecture, *, input_size: int | None = None) -> keras.Model:
    """Build a registered architecture's network with fresh weights.

    Args:
        architecture: from `get_architecture`.
        input_size: pixels per side of the input; the architecture's `image_size` if None. Weights don't depend on it.

    Returns:
        A functional model as `Family.build` says.
    """
    return _families[architecture.name].build(architecture, input_size=input_size)


def weight_shapes(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Paths and shapes of the variables of a registered architecture's network, at no cost in memory.

    They are kept: outlining a network takes some tenths of a second, and where an importer finds out whose weights it
    has, it asks for many networks that differ in nothing that counts here.

    Args:
        architecture: from `get_architecture`.
    """
    build = _families[architecture.name].build
    outlined = architecture.outlined() if isinstance(architecture, NetworkSpec) else architecture
    return _weight_shapes(build, cast(Hashable, outlined))


@lru_cache(maxsize=64)
def _weight_shapes(build: Callable[..., keras.Model], architecture: Hashable) -> Mapping[str, tuple[int, ...]]:
    network = outline(lambda: build(architecture))
    return MappingProxyType({variable.path: tuple(variable.shape) for variable in network.weights})


def to_manifest(architecture: Architecture) -> dict[str, Any]:
    """The architecture as a bundle's manifest has it: its name, and what differs from what is registered."""
    return {"name": architecture.name, **architecture.overrides(_architectures[architecture.name])}
