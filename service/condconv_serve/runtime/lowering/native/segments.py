"""Cuts a network into segments: nodes that form one program, and what TensorFlow computes before each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from keras import layers

from condconv_serve.nn import CondConvDense
from condconv_serve.nn.model_graph import Call, ModelGraph
from condconv_serve.runtime.lowering.native.fusing import find_nodes
from condconv_serve.runtime.lowering.native.nodes import Node
from condconv_serve.runtime.lowering.native.tensors import Tensors

Tensor = Any

NO_CONVOLUTION = "no convolution is near"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Calls that TensorFlow computes, one by one, and then nodes that one program computes. Either may be empty.

    It reads nothing but what it computes itself and what segments before it compute.
    """

    calls: tuple[Call, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """How a network is computed.

    Attributes:
        segments: in order.
        reasons: why TensorFlow computes a call, by the call's id.
    """

    segments: tuple[Segment, ...]
    reasons: dict[int, str]

    @property
    def nodes(self) -> Iterator[Node]:
        """All nodes."""
        return (node for segment in self.segments for node in segment.nodes)

    @property
    def calls(self) -> Iterator[Call]:
        """All calls that TensorFlow computes."""
        return (call for segment in self.segments for call in segment.calls)


def schedule(graph: ModelGraph, tensors: Tensors) -> Schedule:
    """Cut a network into as few segments as can be.

    A segment without a convolution isn't worth the way into a program and back, so TensorFlow computes it.
    """
    found = find_nodes(graph, tensors)
    nodes, reasons = list(found.nodes), dict(found.reasons)
    while True:
        segments = _levels(graph, tensors, nodes)
        useless = [node for segment in segments if not _convolves(segment.nodes) for node in segment.nodes]
        if not useless:
            return Schedule(segments, reasons)
        reasons |= {id(call): NO_CONVOLUTION for node in useless for call in node.calls}
        nodes = [node for node in nodes if node not in useless]


def _levels(graph: ModelGraph, tensors: Tensors, nodes: Collection[Node]) -> tuple[Segment, ...]:
    """Segments by level: a node is on its highest input's, and a call on the next one if a node computes that input.

    So what depends on a segment is on a higher level, or in it.
    """
    by_last = {id(node.last): node for node in nodes}
    others = {id(call) for node in nodes for call in node.calls} - by_last.keys() | tensors.aliases
    level: dict[int, int] = defaultdict(int)  # the inputs are on level 0
    native: set[int] = set()
    calls: dict[int, list[Call]] = defaultdict(list)
    members: dict[int, list[Node]] = defaultdict(list)
    for call in graph.calls:
        node = by_last.get(id(call))
        if node is not None:
            own = max(level[id(tensor)] for tensor in node.inputs)
            members[own].append(node)
            level |= {id(tensor): own for tensor in node.outputs}
            native |= {id(tensor) for tensor in node.outputs}
        elif id(call) not in others:
            inputs = [id(tensors.root(tensor)) for tensor in call.inputs]
            own = max((level[tensor] + (tensor in native) for tensor in inputs), default=0)
            calls[own].append(call)
            level |= {id(tensor): own for tensor in call.outputs}
    return tuple(Segment(tuple(calls[at]), tuple(members[at])) for at in range(max((*calls, *members), default=-1) + 1))


def _convolves(nodes: Collection[Node]) -> bool:
    both = [*nodes, *(node.producer for node in nodes if node.producer is not None)]
    found = [node.convolution for node in both if node.convolution is not None]
    return not nodes or any(type(one.layer) not in (layers.Dense, CondConvDense, type(None)) for one in found)
