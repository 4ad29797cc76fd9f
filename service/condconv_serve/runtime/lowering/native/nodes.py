"""A `Node`: one step of a program to be, in terms of the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from condconv_serve.nn.model_graph import Call
from condconv_serve.runtime.kernels.program import Activation, StepKind

Tensor = Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Convolution:
    """A convolution, with the sizes that it has in this network. A dense layer is one with a kernel of 1 x 1.

    Attributes:
        layer: the Keras layer with the weights. None: each channel is taken as it is, for the norm alone.
        norm: the batch norm that follows, or None.
        depthwise: whether each channel is convolved separately.
        experts: how many are mixed per example; None: there is one kernel for all.
        kernel: height and width; so are strides and dilations.
        size: of the input: height, width, channels.
        out_size: of the output, likewise.
        pads: rows of zeros above the input, and columns left of it.
    """

    layer: Any | None
    norm: Any | None = None
    depthwise: bool = False
    experts: int | None = None
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    size: tuple[int, int, int]
    out_size: tuple[int, int, int]
    pads: tuple[int, int] = (0, 0)

    @property
    def is_pointwise(self) -> bool:
        """Whether it mixes the channels of each pixel by itself."""
        return (
            not self.depthwise
            and self.kernel == (1, 1)
            and self.strides == (1, 1)
            and self.size[:2] == self.out_size[:2]
        )

    @property
    def depth(self) -> int:
        """How many numbers one number of the output sums up."""
        return self.kernel[0] * self.kernel[1] * (1 if self.depthwise else self.size[2])

    @property
    def weights(self) -> int:
        """How many numbers one kernel has."""
        return self.depth * self.out_size[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a MAX_POOL looks at: height and width of its windows, their strides, and the size of its output.

    `pads` are rows of nothing above the input, and columns left of it.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    out_size: tuple[int, int, int]
    pads: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One step of a program to be. Its tensors are symbolic and roots.

    Attributes:
        kind: what it computes.
        calls: the calls of the network that it does; the place of `last` is its own among all calls.
        last: the call that computes `output`.
        input: what it reads; so are routing, scale and residual, if it has them.
        output: what it computes; the same numbers in another shape may be read.
        pooled: the output's mean over height and width, which it computes too.
        convolution: of CONV and DEPTHWISE.
        window: of MAX_POOL.
        producer: the node whose output is the convolution's input and nobody else's; `input` is then the producer's.
        activation: of the output.
    """

    kind: StepKind
    calls: tuple[Call, ...]
    last: Call
    input: Tensor
    output: Tensor
    routing: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None
    pooled: Tensor | None = None
    convolution: Convolution | None = None
    window: Window | None = None
    producer: Node | None = None
    activation: Activation = Activation.LINEAR

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All tensors that it reads."""
        return tuple(t for t in (self.input, self.routing, self.scale, self.residual) if t is not None)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """All tensors that it computes."""
        return (self.output,) if self.pooled is None else (self.output, self.pooled)

    def then(self, after: Node, **changes: Any) -> Node:
        """Both in one: this node, with what `after` computes as its output, and with changes."""
        return replace(self, calls=(*self.calls, *after.calls), last=after.last, output=after.output, **changes)
