"""The table of what native kernels compute: which layer is which step of a program.

A line's function takes a call and returns its node, or says in a few words why no kernel does it. Which nodes fuse into
one is said in `fusing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import keras
from keras import layers

from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D
from condconv_serve.nn.model_graph import Call
from condconv_serve.runtime.kernels.abi import MAX_EXPERTS, MAX_TAPS
from condconv_serve.runtime.kernels.program import Activation, StepKind
from condconv_serve.runtime.layer_kinds import kind_of
from condconv_serve.runtime.lowering.native.nodes import Convolution, Node, Window
from condconv_serve.runtime.lowering.native.tensors import Tensors, map_size, row_shape

Found = Node | str

ACTIVATIONS: Final[Mapping[Any, Activation]] = {
    keras.activations.linear: Activation.LINEAR,
    keras.activations.relu: Activation.RELU,
    keras.activations.relu6: Activation.RELU6,
    keras.activations.silu: Activation.SWISH,
    keras.activations.hard_silu: Activation.HARD_SWISH,
    keras.activations.sigmoid: Activation.SIGMOID,
    keras.activations.hard_sigmoid: Activation.HARD_SIGMOID,
}


_NOT_NEGATIVE = (Activation.RELU, Activation.RELU6, Activation.SIGMOID, Activation.HARD_SIGMOID)


def find_node(call: Call, tensors: Tensors) -> Found:
    """The node of one call, or why there is none."""
    layer = call.operation
    pattern = _PATTERNS.get(type(layer))
    if pattern is None:
        return "no kernel computes it"
    if any(row_shape(tensor) is None for tensor in (*call.inputs, *call.outputs)):
        return "the size of its input is open"
    if not all("float" in str(tensor.dtype) for tensor in call.inputs):
        return "its input are no floats"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "its channels come first"
    reshaped = any(map_size(tensors.root(tensor)) != map_size(tensor) for tensor in call.inputs)
    if reshaped and type(layer) not in (layers.Dense, CondConvDense):
        return "its input was reshaped"
    return pattern(call, tensors)


def _convolution(call: Call, tensors: Tensors) -> Found:
    layer, kind = call.operation, kind_of(call.operation)
    activation = _activation_of(layer)
    if isinstance(activation, str):
        return activation
    if kind is None or len(call.inputs) != (2 if kind.experts else 1):
        return "it is called in an unusual way"
    groups = getattr(layer, "groups", 1)
    depthwise = kind.depthwise or (groups > 1 and call.inputs[0].shape[-1] == groups == layer.filters)
    if groups > 1 and not depthwise:
        return f"it has {groups} groups"
    if kind.depthwise and layer.depth_multiplier != 1:
        return f"it has {layer.depth_multiplier} kernels per channel"
    kernel, strides, dilations = (tuple(pair) for pair in (layer.kernel_size, layer.strides, layer.dilation_rate))
    experts = layer.num_experts if kind.experts else None
    too_large = _too_large(kernel, experts)
    if too_large is not None:
        return too_large
    before, after = map_size(call.inputs[0]), map_size(call.outputs[0])
    if before is None or after is None:
        return "its input is no map"
    same = layer.padding == "same"
    top, left = (
        # SAME pads one more row below than above if it pads an odd number.
        max((out - 1) * stride + (k - 1) * dilation + 1 - size, 0) // 2 if same else 0
        for size, out, k, stride, dilation in zip(before[:2], after[:2], kernel, strides, dilations, strict=True)
    )
    node = _node(
        StepKind.DEPTHWISE if depthwise else StepKind.CONV,
        call,
        tensors,
        routing=tensors.root(call.inputs[1]) if kind.experts else None,
        activation=activation,
        convolution=Convolution(
            layer=layer,
            depthwise=depthwise,
            experts=experts,
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            size=before,
            out_size=after,
            pads=(top, left),
        ),
    )
    return _padded(node, tensors) or node


def _padded(node: Node, tensors: Tensors) -> Node | None:
    """The convolution with the zeros that a layer puts around its input; None if there is no such layer before it."""
    before, convolution = tensors.producer(node.input), node.convolution
    if before is None or type(before.operation) is not layers.ZeroPadding2D or convolution is None:
        return None
    size = _size_within(before, tensors)
    alone = tensors.sole_reader(node.input) is node.last
    if not alone or size is None or convolution.pads != (0, 0) or before.operation.data_format != "channels_last":
        return None
    pads = tuple(pad for pad, _ in before.operation.padding)
    for extent, out, pad, axis in zip(size[:2], convolution.out_size[:2], pads, (0, 1), strict=True):
        reach = (convolution.kernel[axis] - 1) * convolution.dilations[axis] + 1
        if pad >= reach or (out - 1) * convolution.strides[axis] - pad >= extent:  # a window of nothing but zeros
            return None
    return replace(
        node,
        calls=(before, *node.calls),
        input=tensors.root(before.inputs[0]),
        convolution=replace(convolution, size=size, pads=pads),
    )


def _dense(call: Call, tensors: Tensors) -> Found:
    activation = _activation_of(call.operation)
    if isinstance(activation, str):
        return activation
    kind = kind_of(call.operation)
    if kind is None or len(call.inputs) != (2 if kind.experts else 1):
        return "it is called in an unusual way"
    size, out_size = map_size(tensors.root(call.inputs[0])), map_size(call.outputs[0])
    if size is None or out_size is None:
        return "its input is neither a map nor a vector"
    # Of a map that was made a vector, it is a convolution whose kernel is as large as the map.
    kernel = (1, 1) if map_size(call.inputs[0]) == size else size[:2]
    experts = call.operation.num_experts if kind.experts else None
    too_large = _too_large(kernel, experts)
    if too_large is not None:
        return too_large
    convolution = Convolution(layer=call.operation, experts=experts, kernel=kernel, size=size, out_size=out_size)
    routing = tensors.root(call.inputs[1]) if kind.experts else None
    return _node(StepKind.CONV, call, tensors, routing=routing, activation=activation, convolution=convolution)


def _too_large(kernel: tuple[int, int], experts: int | None) -> str | None:
    """Why no bank holds such a kernel, or so many; None if one does."""
    if experts is not None and experts > MAX_EXPERTS:
        return f"it has more than {MAX_EXPERTS} experts"
    if kernel[0] * kernel[1] > MAX_TAPS:
        return f"its kernel of {kernel[0]} x {kernel[1]} is too large"
    return None


def _norm(call: Call, tensors: Tensors) -> Found:
    """A norm that isn't folded: a depthwise convolution that takes each channel as it is."""
    size = map_size(call.inputs[0])
    if size is None or call.operation.axis not in (-1, len(call.inputs[0].shape) - 1):
        return "it doesn't normalise channels"
    convolution = Convolution(layer=None, norm=call.operation, depthwise=True, size=size, out_size=size)
    return _node(StepKind.DEPTHWISE, call, tensors, convolution=convolution)


def _activation(call: Call, tensors: Tensors) -> Found:
    activation = _activation_of(call.operation)
    if isinstance(activation, str):
        return activation
    return _node(StepKind.ACTIVATE, call, tensors, activation=activation)


def _pool(call: Call, tensors: Tensors) -> Found:
    return _node(StepKind.POOL, call, tensors)


def _max_pool(call: Call, tensors: Tensors) -> Found:
    layer = call.operation
    before, after = map_size(call.inputs[0]), map_size(call.outputs[0])
    if before is None or after is None:
        return "its input is no map"
    kernel, strides = tuple(layer.pool_size), tuple(layer.strides)
    same = layer.padding == "same"
    top, left = (
        max((out - 1) * stride + k - size, 0) // 2 if same else 0
        for size, out, k, stride in zip(before[:2], after[:2], kernel, strides, strict=True)
    )
    window = Window(kernel=kernel, strides=strides, out_size=after, pads=(top, left))
    node = _node(StepKind.MAX_POOL, call, tensors, window=window)
    return _padded_pool(node, window, tensors) or node


def _padded_pool(node: Node, window: Window, tensors: Tensors) -> Node | None:
    """The pool with the zeros around its input, which are as good as nothing if no number there is below zero."""
    zeros = tensors.producer(node.input)
    if zeros is None or type(zeros.operation) is not layers.ZeroPadding2D or window.pads != (0, 0):
        return None
    before, size = tensors.producer(zeros.inputs[0]), _size_within(zeros, tensors)
    # The activation of a layer that isn't known may not be what it ends with.
    known = None if before is None or type(before.operation) not in _PATTERNS else before.operation
    positive = known is not None and _activation_of(known) in _NOT_NEGATIVE
    alone = tensors.sole_reader(node.input) is node.last
    pads = _around(zeros.operation, size, window) if size is not None and positive and alone else None
    if pads is None:
        return None
    return replace(
        node,
        calls=(zeros, *node.calls),
        input=tensors.root(zeros.inputs[0]),
        window=replace(window, pads=pads),
    )


def _size_within(zeros: Call, tensors: Tensors) -> tuple[int, int, int] | None:
    """The size of the map that zeros are put around; None if it lies elsewhere in another shape."""
    size = map_size(zeros.inputs[0])
    return size if size == map_size(tensors.root(zeros.inputs[0])) else None


def _around(zeros: Any, size: tuple[int, int, int], window: Window) -> tuple[int, int] | None:
    """Rows above and columns left of a map that has zeros around it; None if a window has nothing but these."""
    top, left = (pad for pad, _ in zeros.padding)
    for extent, pad, axis in ((size[0], top, 0), (size[1], left, 1)):
        last = (window.out_size[axis] - 1) * window.strides[axis] - pad
        if zeros.data_format != "channels_last" or pad >= window.kernel[axis] or last >= extent:
            return None
    return top, left


def _add(call: Call, tensors: Tensors) -> Found:
    if len(call.inputs) != 2 or row_shape(call.inputs[0]) != row_shape(call.inputs[1]):
        return "it doesn't add two tensors of one shape"
    return _node(StepKind.ADD, call, tensors, residual=tensors.root(call.inputs[1]))


def _multiply(call: Call, tensors: Tensors) -> Found:
    if len(call.inputs) != 2:
        return "it doesn't multiply two tensors"
    x, y = call.inputs
    if row_shape(x) == row_shape(y):
        return _node(StepKind.MULTIPLY, call, tensors, residual=tensors.root(y))
    if row_shape(x) == (1, 1, x.shape[-1]):
        x, y = y, x
    if len(x.shape) != 4 or row_shape(y) != (1, 1, x.shape[-1]):
        return "its inputs have different shapes, and neither is a factor for each channel of a map"
    return _node(StepKind.SCALE, call, tensors, input=tensors.root(x), scale=tensors.root(y))


_PATTERNS: Final[Mapping[type, Callable[[Call, Tensors], Found]]] = {
    layers.Conv2D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    CondConv2D: _convolution,
    DepthwiseCondConv2D: _convolution,
    layers.Dense: _dense,
    CondConvDense: _dense,
    layers.BatchNormalization: _norm,
    layers.Activation: _activation,
    layers.ReLU: _activation,
    layers.GlobalAveragePooling2D: _pool,
    layers.MaxPooling2D: _max_pool,
    layers.Add: _add,
    layers.Multiply: _multiply,
    # What `x + y` and `x * y` leave in a network.
    keras.src.ops.numpy.Add: _add,
    keras.src.ops.numpy.Multiply: _multiply,
}


def _node(kind: StepKind, call: Call, tensors: Tensors, **fields: Any) -> Node:
    fields.setdefault("input", tensors.root(call.inputs[0]))
    return Node(kind=kind, calls=(call,), last=call, output=call.outputs[0], **fields)


def _activation_of(layer: Any) -> Activation | str:
    """What a layer ends with, or why no kernel does that."""
    if type(layer) is layers.ReLU:
        plain = not layer.negative_slope and not layer.threshold
        if plain and layer.max_value in (None, 6):
            return Activation.RELU if layer.max_value is None else Activation.RELU6
        return "no kernel has its slope, threshold or maximum"
    function = getattr(layer, "activation", keras.activations.linear)
    if type(function) in (layers.ReLU, layers.Activation):
        return _activation_of(function)
    known = None if isinstance(function, layers.Layer) else ACTIVATIONS.get(function)
    return f"no kernel has its activation {getattr(function, '__name__', function)}" if known is None else known
