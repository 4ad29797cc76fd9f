"""The table of what fuses: nodes that become one, so that what is between them never goes to memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from condconv_serve.nn.model_graph import Call, ModelGraph
from condconv_serve.runtime.fold import foldable_norms
from condconv_serve.runtime.kernels.program import Activation, StepKind
from condconv_serve.runtime.layer_kinds import has_kernel
from condconv_serve.runtime.lowering.native.nodes import Node
from condconv_serve.runtime.lowering.native.patterns import find_node
from condconv_serve.runtime.lowering.native.tensors import Tensors

MAX_PRODUCER_DEPTH = 256
"""How many numbers a producer may sum up at most: with more, the mixed kernels of a tile would leave the cache, where
each example's tile of the map lies, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The nodes of a network, in the order of its calls, and why other calls have none, by the ids of the calls."""

    nodes: tuple[Node, ...]
    reasons: dict[int, str]


def find_nodes(graph: ModelGraph, tensors: Tensors) -> Found:
    """Find what native kernels compute of a network, fused as far as it can be."""
    nodes, reasons = _single_nodes(graph, tensors)
    for merge in _FUSIONS:
        # From the outputs on, so that of two convolutions that are added, the later one adds.
        for call in reversed(graph.calls):
            first = nodes.get(id(call))
            if first is None or first.last is not call:
                continue
            alone = tensors.sole_reader(first.output)
            readers = tensors.readers(first.output) if merge is _pooled else [] if alone is None else [alone]
            for second in [nodes[id(reader)] for reader in readers if id(reader) in nodes]:
                fused = merge(first, second)
                if fused is not None:
                    nodes |= {id(done): fused for done in fused.calls}
    places = {id(call): place for place, call in enumerate(graph.calls)}
    distinct = {id(node): node for node in nodes.values()}
    return Found(tuple(sorted(distinct.values(), key=lambda node: places[id(node.last)])), reasons)


def _single_nodes(graph: ModelGraph, tensors: Tensors) -> tuple[dict[int, Node], dict[int, str]]:
    """A node for each call, but norms are folded into their convolutions; and why other calls have none."""
    nodes: dict[int, Node] = {}
    reasons: dict[int, str] = {}
    norms = {id(norm): name for name, norm in foldable_norms(graph).items()}
    convolutions = {call.operation.name: call for call in graph.calls if has_kernel(call.operation)}
    for call in graph.calls:
        if id(call) in tensors.aliases:
            continue
        found = find_node(call, tensors)
        if id(call.operation) in norms:
            convolution = convolutions[norms[id(call.operation)]]
            found = _folded(nodes.get(id(convolution)), call) or f"it goes with {convolution.operation.name}"
        elif isinstance(found, Node) and found.kind is StepKind.ACTIVATE:
            before = graph.producer(call.inputs[0])
            # TensorFlow fuses it into a convolution that it computes.
            if before is not None and _convolves(before, norms) and id(before) in reasons:
                found = f"it goes with {before.operation.name}"
        if isinstance(found, str):
            reasons[id(call)] = found
        else:
            nodes |= {id(done): found for done in found.calls}
    return nodes, {call: reason for call, reason in reasons.items() if call not in nodes}


def _convolves(call: Call, norms: dict[int, str]) -> bool:
    return has_kernel(call.operation) or id(call.operation) in norms


def _folded(node: Node | None, norm: Call) -> Node | None:
    if node is None or node.convolution is None:
        return None
    return replace(
        node,
        calls=(*node.calls, norm),
        last=norm,
        output=norm.outputs[0],
        convolution=replace(node.convolution, norm=norm.operation),
    )


def _activated(first: Node, second: Node) -> Node | None:
    """What computes a map or a vector also activates it."""
    computes = first.kind in (StepKind.CONV, StepKind.DEPTHWISE, StepKind.ADD)
    if second.kind is not StepKind.ACTIVATE or not computes or first.activation is not Activation.LINEAR:
        return None
    return first.then(second, activation=second.activation)


def _added(first: Node, second: Node) -> Node | None:
    """A convolution that isn't activated adds the residual, and activates the sum."""
    if second.kind is not StepKind.ADD or first.kind is not StepKind.CONV:
        return None
    if first.activation is not Activation.LINEAR or first.residual is not None:
        return None
    other = second.residual if second.input is first.output else second.input
    return first.then(second, residual=other, activation=second.activation)


def _scaled(first: Node, second: Node) -> Node | None:
    """Pointwise kernels take the scale of their input with them, where they are smaller than the input."""
    convolution = second.convolution
    reads = second.input is first.output and second.scale is None
    if first.kind is not StepKind.SCALE or convolution is None or not reads:
        return None
    height, width, _ = convolution.size
    smaller = convolution.out_size[2] < height * width
    if not convolution.is_pointwise or not smaller:
        return None
    return replace(second, calls=(*first.calls, *second.calls), input=first.input, scale=first.scale)


def _produced(first: Node, second: Node) -> Node | None:
    """A depthwise convolution computes its input tile by tile, and no tile leaves the cache."""
    reads = second.input is first.output and second.producer is None
    if second.kind is not StepKind.DEPTHWISE or first.kind is not StepKind.CONV or not reads:
        return None
    if first.scale is not None or first.residual is not None or first.convolution is None:
        return None
    both_mixed = first.routing is not None and second.routing is not None
    if (both_mixed and first.routing is not second.routing) or first.convolution.depth > MAX_PRODUCER_DEPTH:
        return None
    return replace(
        second,
        calls=(*first.calls, *second.calls),
        input=first.input,
        routing=second.routing if first.routing is None else first.routing,
        producer=first,
    )


def _pooled(first: Node, second: Node) -> Node | None:
    """A depthwise convolution computes the mean of its output on the way."""
    if second.kind is not StepKind.POOL or first.kind is not StepKind.DEPTHWISE:
        return None
    return replace(first, calls=(*first.calls, *second.calls), pooled=second.output)


_FUSIONS: Final[tuple[Callable[[Node, Node], Node | None], ...]] = (_activated, _added, _scaled, _produced, _pooled)
