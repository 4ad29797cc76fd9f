"""What a lowering makes of a network: a function of tensors, and what that function needs as long as it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from condconv_serve.domain import NativeUse

Tensor = Any


class Closeable(Protocol):
    """Something that is given back when nobody needs it any more."""

    def close(self) -> None:
        """Give it back. Doing so again does nothing."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Lowered:
    """A network for inference, as a function of its inputs.

    Attributes:
        compute: takes a value for each input, and returns the outputs in the structure of the model's own.
        stateless: whether it holds nothing but constants, and so can be built straight into a graph.
        resources: native programs that it uses. Whoever lowered the network closes them, once no more graph is built
            and no more session is made from it.
        native: what native kernels compute of it.
    """

    compute: Callable[[Sequence[Tensor]], Any]
    stateless: bool
    resources: tuple[Closeable, ...] = ()
    native: NativeUse = field(default_factory=NativeUse)

    def __call__(self, *inputs: Tensor) -> Any:
        """Compute the outputs."""
        return self.compute(inputs)
