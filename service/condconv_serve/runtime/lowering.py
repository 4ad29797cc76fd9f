"""How a network's layers are computed for inference, one `Lowering` per kind of device.

All lowerings compute what the plain Keras layers compute; they differ in which operations the device is good at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D, mix_experts
from condconv_serve.runtime.fold import FoldedConvolution, fold_batch_norms, is_convolution
from condconv_serve.runtime.model_graph import ModelGraph

Tensor = Any
_STATELESS = (keras.layers.Add, keras.layers.Dropout, keras.layers.GlobalAveragePooling2D, keras.layers.Multiply)
Activation = Callable[[Tensor], Tensor]
DepthwiseCondConv = Callable[[Any, Tensor, Tensor, Tensor, Tensor, Activation], Tensor]


@dataclass(frozen=True, slots=True)
class Lowering:
    """The operations that a kind of device gets; what isn't named here is computed alike everywhere.

    `depthwise_condconv(layer, experts, x, routing, bias, activate)` applies one depthwise kernel per example, adds the
    bias `[1 or B, channels]` and activates, in whichever order of axes is cheapest. `constants` says how weights are
    held: as constants of the graph, or as variables that several graphs share. `fold_scales` moves
    squeeze-and-excitation's product from the activations into the kernels of the convolution that follows, where those
    are smaller. `dtype` is that of the convolutions.
    """

    depthwise_condconv: DepthwiseCondConv
    constants: bool
    fold_scales: bool
    dtype: Any = tf.float32

    def hold(self, weight: Any) -> Tensor:
        """Keep a weight as a constant or a variable."""
        return weight if self.constants else tf.Variable(weight, trainable=False)


def lower(model: keras.Model, lowering: Lowering) -> keras.Model:
    """Rebuild a functional model for inference: norms folded, layers computed as `lowering` says.

    Returns:
        A model with the same inputs and outputs; the layers known here hold their weights as `lowering.hold` does.
    """
    weights, folded = fold_batch_norms(model)
    scaled = _scaled_convolutions(model) if lowering.fold_scales else {}
    activations = _following_activations(model, folded)
    identities = {*folded, *scaled, *(activation.name for activation in activations.values())}
    scales: dict[str, Tensor] = {}

    def replacement(layer: Any) -> Any:
        if layer.name in identities:
            return _Lowered(lambda x, *_: x, layer)
        if layer.name in weights:
            activation = _activation(activations.get(layer.name, layer))
            return _Lowered(_convolution(layer, weights[layer.name], activation, lowering), layer, dtype=lowering.dtype)
        if type(layer) is keras.layers.Activation:
            return _Lowered(_activation(layer), layer)
        if type(layer) is keras.layers.Dense:
            return _Lowered(_dense(layer, lowering), layer)
        # A layer remembers every model that calls it, so the original's would keep this one and its weights alive.
        return type(layer).from_config(layer.get_config()) if type(layer) in _STATELESS else layer

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, _Lowered):
            return layer(*args, **kwargs)
        # Training flags and masks mean nothing to a lowered layer.
        tensors = keras.tree.flatten((args, [kwargs[name] for name in ("inputs", "routing_weights") if name in kwargs]))
        if layer.name in scaled:
            x, scale = sorted(tensors, key=lambda t: t.shape[1] == 1)
            scales[scaled[layer.name]] = scale
            return x
        if layer.name in scales:
            tensors.append(scales[layer.name])
        return layer(*tensors)

    return keras.models.clone_model(model, clone_function=replacement, call_function=call)


def is_stateless(lowered: keras.Model) -> bool:
    """Whether a lowered model holds nothing but constants, and so can be built straight into a graph."""
    return all(
        isinstance(operation, _Lowered | keras.layers.InputLayer) or type(operation) in _STATELESS
        for operation in lowered.operations
    )


class _Lowered(keras.layers.Layer):
    """A layer that computes what another one does, as a plain function of its inputs."""

    def __init__(self, compute: Callable[..., Tensor], original: Any, *, dtype: Any = tf.float32) -> None:
        super().__init__(name=original.name, dtype=dtype.name)
        self._compute = compute
        # Kept from Keras's sight: it must not become a sublayer whose variables would be this layer's.
        self._output_shape = original.compute_output_shape
        self._inputs = 2 if isinstance(original, CondConv2D | DepthwiseCondConv2D) else 1

    def compute_output_spec(self, *inputs: Any) -> Any:
        # Known beforehand; Keras would find it out by tracing, with a copy of all weights.
        shape = self._output_shape(*(tensor.shape for tensor in inputs[: self._inputs]))
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def call(self, *inputs: Tensor) -> Tensor:
        return self._compute(*inputs)


def _scaled_convolutions(model: keras.Model) -> dict[str, str]:
    """Products `[B, H, W, C] * [B, 1, 1, C]` that only a pointwise convolution reads: its name by the product's.

    Only where the convolution's kernel is smaller than the activations, so that scaling it costs less.
    """
    graph = ModelGraph(model)
    found: dict[str, str] = {}
    for node in graph.nodes:
        product, reader = node.operation, graph.sole_reader(node)
        multiplies = type(product) is keras.layers.Multiply and len(node.input_tensors) == 2
        if not multiplies or reader is None or not _is_pointwise(reader):
            continue
        x, scale = sorted(node.input_tensors, key=lambda tensor: tensor.shape[1] == 1)
        scales_channels = scale.shape[1:] == (1, 1, x.shape[-1]) and None not in x.shape[1:]
        once = graph.called_once(product) and graph.called_once(reader)
        if scales_channels and once and reader.filters < x.shape[1] * x.shape[2]:
            found[product.name] = reader.name
    return found


def _is_pointwise(layer: Any) -> bool:
    return (
        is_convolution(layer)
        and isinstance(layer, keras.layers.Conv2D | CondConv2D)
        and tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.strides) == (1, 1)
        and getattr(layer, "groups", 1) == 1
    )


def _following_activations(model: keras.Model, folded: frozenset[str]) -> dict[str, Any]:
    """The activation layer that alone reads a convolution, or its folded norm, by the convolution's name."""
    graph = ModelGraph(model)
    by_name = {node.operation.name: node for node in graph.nodes}
    found: dict[str, Any] = {}
    for node in graph.nodes:
        layer, reader = node.operation, graph.sole_reader(node)
        if reader is not None and reader.name in folded:
            reader = graph.sole_reader(by_name[reader.name])
        activates = type(reader) is keras.layers.Activation and graph.called_once(reader)
        if activates and is_convolution(layer) and graph.called_once(layer) and _is_linear(layer):
            found[layer.name] = reader
    return found


def _is_linear(layer: Any) -> bool:
    return bool(layer.activation is keras.activations.linear)


def _convolution(
    layer: Any, weights: FoldedConvolution, activate: Activation, lowering: Lowering
) -> Callable[..., Tensor]:
    def hold(weight: NDArray[np.float32]) -> Tensor:
        return lowering.hold(weight if lowering.dtype == tf.float32 else tf.cast(weight, lowering.dtype))

    kernel, bias = hold(weights.kernel), hold(weights.bias[None])
    if not isinstance(layer, CondConv2D | DepthwiseCondConv2D):
        convolve = _depthwise if isinstance(layer, keras.layers.DepthwiseConv2D) else _conv
        return lambda x, *scale: convolve(layer, kernel, x, bias, activate, *scale)
    condconv = lowering.depthwise_condconv if isinstance(layer, DepthwiseCondConv2D) else _condconv
    expert_bias = None if weights.expert_bias is None else hold(weights.expert_bias)

    def with_routing(x: Tensor, routing: Tensor, *scale: Tensor) -> Tensor:
        mixed_bias = bias if expert_bias is None else bias + tf.matmul(routing, expert_bias)
        return condconv(layer, kernel, x, routing, mixed_bias, activate, *scale)

    return with_routing


def _activation(layer: Any) -> Callable[[Tensor], Tensor]:
    if layer.activation is keras.activations.silu:
        # Keras's comes with a gradient of its own, whose wrapping hides the product from Grappler.
        return lambda x: x * tf.sigmoid(x)
    activation: Callable[[Tensor], Tensor] = layer.activation
    return activation


def _dense(layer: Any, lowering: Lowering) -> Callable[[Tensor], Tensor]:
    kernel = lowering.hold(np.asarray(layer.kernel))
    bias = lowering.hold(np.zeros(layer.units, np.float32) if layer.bias is None else np.asarray(layer.bias))
    activate = _activation(layer)
    return lambda x: activate(tf.nn.bias_add(tf.matmul(x, kernel), bias))


def _conv(
    layer: Any, kernel: Tensor, x: Tensor, bias: Tensor, activate: Activation, scale: Tensor | None = None
) -> Tensor:
    if scale is not None:
        return _apply_pointwise(x, tf.reshape(scale, (-1, 1, x.shape[-1], 1)) * kernel, bias, activate)
    y = tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate)
    return activate(tf.nn.bias_add(y, bias[0]))


def _depthwise(layer: Any, kernel: Tensor, x: Tensor, bias: Tensor, activate: Activation) -> Tensor:
    strides = (1, *layer.strides, 1)
    y = tf.nn.depthwise_conv2d(x, kernel, strides, layer.padding.upper(), dilations=layer.dilation_rate)
    return activate(tf.nn.bias_add(y, tf.reshape(bias, (-1,))))


def _condconv(
    layer: CondConv2D,
    experts: Tensor,
    x: Tensor,
    routing: Tensor,
    bias: Tensor,
    activate: Activation,
    scale: Tensor | None = None,
) -> Tensor:
    """Mix all kernels in one matrix product, apply them in one batched matrix product."""
    if not _is_pointwise(layer):
        return activate(layer.convolve(x, mix_experts(routing, experts)) + _per_example(bias))
    kernels = tf.reshape(mix_experts(routing, experts), (-1, 1, x.shape[-1], layer.filters))
    if scale is not None:
        kernels *= tf.reshape(scale, (-1, 1, x.shape[-1], 1))
    return _apply_pointwise(x, kernels, bias, activate)


def _apply_pointwise(x: Tensor, kernels: Tensor, bias: Tensor, activate: Activation) -> Tensor:
    """Apply one kernel per example: `[B, H, W, C]` with `[B, 1, C, filters]`.

    Bias and activation come before the reshape, which would keep engines from fusing them into the product. Grappler
    fuses a bias only if a factor stands before it: the factor is one, but in a way that Grappler can't see through;
    OpenVINO, which knows the batch size, can, and drops it.
    """
    _, height, width, channels = x.shape
    one = tf.cast(tf.minimum(tf.shape(x)[0], 1), x.dtype)
    y = tf.matmul(tf.reshape(x, (-1, 1, height * width, channels)), kernels)
    return tf.reshape(activate(one * y + _per_example(bias)), (-1, height, width, kernels.shape[-1]))


def _per_example(bias: Tensor) -> Tensor:
    return tf.reshape(bias, (-1, 1, 1, bias.shape[-1]))


def _batch_folded_depthwise(
    layer: DepthwiseCondConv2D, experts: Tensor, x: Tensor, routing: Tensor, bias: Tensor, activate: Activation
) -> Tensor:
    """Fold the batch into the channels, so that one ordinary depthwise convolution applies every example's kernel."""
    if layer.dilation_rate != (1, 1) or layer.strides[0] != layer.strides[1]:
        return _shifted_products(layer, experts, x, routing, bias, activate)  # TensorFlow's operation can't
    batch, height, width, channels = ops.shape(x)
    (kernel_height, kernel_width), multiplier = layer.kernel_size, layer.depth_multiplier
    kernels = tf.transpose(mix_experts(routing, experts), (1, 2, 0, 3, 4))
    kernels = tf.reshape(kernels, (kernel_height, kernel_width, -1, multiplier))
    folded = tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (1, height, width, -1))
    y = _depthwise(layer, kernels, folded, tf.broadcast_to(bias, (batch, bias.shape[-1])), activate)
    _, height, width, _ = ops.shape(y)
    y = tf.reshape(y, (height, width, -1, channels * multiplier))
    return tf.transpose(y, (2, 0, 1, 3))


def _shifted_products(
    layer: DepthwiseCondConv2D, experts: Tensor, x: Tensor, routing: Tensor, bias: Tensor, activate: Activation
) -> Tensor:
    """A sum of shifted products: a compiler makes one fused kernel of it."""
    return activate(layer.convolve(x, mix_experts(routing, experts)) + _per_example(bias))


CPU = Lowering(depthwise_condconv=_batch_folded_depthwise, constants=True, fold_scales=True)
"""oneDNN operations, any batch size."""

XLA = Lowering(depthwise_condconv=_shifted_products, constants=False, fold_scales=False)
"""For compilation to GPU and TPU kernels: batch sizes are fixed, and one copy of the weights serves them all."""
