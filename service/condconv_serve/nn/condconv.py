"""Conditionally parameterised convolutions: every example is convolved with its own mixture of experts.

Yang et al., "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", NeurIPS 2019, section 3
(arXiv 1904.04971): `y_b = (sum_e routing_weights[b, e] * W_e) * x_b`. Kernels are mixed first and applied once, for
the whole batch in one pass; there is no loop over examples. Everything is `keras.ops`, so any Keras backend works.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from condconv_serve.nn.experts import ExpertLayer, mix_experts, whole

Tensor = Any


class _CondConvBase(ExpertLayer):
    """What the two layers share: spatial arguments, mixed bias and activation."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        num_experts: int,
        *,
        strides: int | tuple[int, int] = 1,
        padding: str = "valid",
        dilation_rate: int | tuple[int, int] = 1,
        data_format: str = "channels_last",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_experts, **kwargs)
        self.kernel_size = _pair(kernel_size, "kernel_size")
        self.strides = _pair(strides, "strides")
        self.padding = str(padding).lower()
        if self.padding not in ("valid", "same"):
            raise ValueError(f"padding must be 'valid' or 'same', not {padding!r}.")
        self.dilation_rate = _pair(dilation_rate, "dilation_rate")
        if data_format not in (None, "channels_last"):
            raise ValueError(f"data_format must be 'channels_last', not {data_format!r}.")

    def _check_shapes(self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]) -> int:
        if len(inputs_shape) != 4 or inputs_shape[-1] is None:
            raise ValueError(f"{self.name} takes inputs [batch, height, width, channels], not shape {inputs_shape}.")
        self.check_routing(routing_weights_shape)
        return inputs_shape[-1]

    def taps(self, inputs: Tensor) -> list[Tensor]:
        """Split into one strided view `[B, out_height, out_width, channels]` per kernel position, row by row."""
        if self.kernel_size == (1, 1) and self.strides == (1, 1):
            return [inputs]
        self._output_size(inputs.shape)
        height, width = ops.shape(inputs)[1:3]
        pads, sizes = [], []
        for size, k, s, d in zip((height, width), self.kernel_size, self.strides, self.dilation_rate, strict=True):
            extent = (k - 1) * d + 1
            if self.padding == "same":
                # SAME at stride 2 pads one more row below than above; the checkpoints were trained so.
                total = (
                    ops.maximum((-(-size // s) - 1) * s + extent - size, 0)
                    if not isinstance(size, int)
                    else max((-(-size // s) - 1) * s + extent - size, 0)
                )
                pads.append((total // 2, total - total // 2))
                sizes.append(-(-size // s))
            else:
                pads.append((0, 0))
                sizes.append((size - extent) // s + 1)
        if self.padding == "same":
            inputs = ops.pad(inputs, ((0, 0), *pads, (0, 0)))
        (sh, sw), (dh, dw), (out_h, out_w) = self.strides, self.dilation_rate, sizes
        return [
            inputs[:, i * dh : i * dh + (out_h - 1) * sh + 1 : sh, j * dw : j * dw + (out_w - 1) * sw + 1 : sw, :]
            for i in range(self.kernel_size[0])
            for j in range(self.kernel_size[1])
        ]

    def _finish(self, outputs: Tensor, routing_weights: Tensor) -> Tensor:
        if self.bias is not None:
            outputs = outputs + mix_experts(routing_weights, self.bias)[:, None, None, :]
        return outputs if self.activation is None else self.activation(outputs)

    def _output_size(self, inputs_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        sizes: list[int | None] = []
        for size, k, s, d in zip(inputs_shape[1:3], self.kernel_size, self.strides, self.dilation_rate, strict=True):
            extent = 1 if self.padding == "same" else (k - 1) * d + 1
            if size is not None and size < extent:
                raise ValueError(f"{self.name} needs at least {extent} rows or columns, not {size} ({inputs_shape}).")
            sizes.append(None if size is None else (size - extent) // s + 1)
        return tuple(sizes)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
        }


@keras.saving.register_keras_serializable(package="condconv")
class CondConv2D(_CondConvBase):
    """2-D convolution with one kernel per example, mixed from `num_experts` experts.

    Called with `inputs` `[B, H, W, C]` and `routing_weights` `[B, num_experts]` (usually sigmoids); returns
    `[B, H', W', filters]`. The kernel weight is `[num_experts, kernel_h, kernel_w, C, filters]`, the bias
    `[num_experts, filters]`; both are mixed by the routing weights. Gradients reach experts and router.

    Args:
        filters: number of output channels.
        kernel_size: one number or (height, width).
        num_experts: number of experts that are mixed.
        strides: one number or (vertical, horizontal).
        padding: "valid" or "same" (TensorFlow's SAME).
        dilation_rate: one number or (vertical, horizontal); may be combined with strides.
        data_format: only "channels_last".
        activation: applied to the result.
        use_bias: whether each expert has a bias.
        kernel_initializer: applied to each expert separately; so is `bias_initializer`.
        kernel_regularizer: applied to the experts; so are `bias_regularizer`, `kernel_constraint`, `bias_constraint`.

    Raises:
        ValueError: an argument or an input's shape is impossible.
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], num_experts: int, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(kernel_size, num_experts, **kwargs)
        self.filters = whole(filters, "filters")

    def build(self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]) -> None:
        """Create the experts."""
        channels = self._check_shapes(inputs_shape, routing_weights_shape)
        self.add_experts((*self.kernel_size, channels, self.filters), self.filters)

    def call(self, inputs: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve each example with its own kernel: patches times kernels, one batched matrix product."""
        return self._finish(self.convolve(inputs, mix_experts(routing_weights, self.kernel)), routing_weights)

    def convolve(self, inputs: Tensor, kernels: Tensor) -> Tensor:
        """Apply one kernel per example, without bias: `kernels` is `[B, kernel_h, kernel_w, C, filters]`."""
        taps = self.taps(inputs)
        patches = taps[0] if len(taps) == 1 else ops.concatenate(taps, axis=-1)
        height, width, depth = ops.shape(patches)[1:]
        outputs = ops.matmul(
            ops.reshape(patches, (-1, height * width, depth)), ops.reshape(kernels, (-1, depth, self.filters))
        )
        return ops.reshape(outputs, (-1, height, width, self.filters))

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Return `(B, H', W', filters)`."""
        return (inputs_shape[0], *self._output_size(inputs_shape), self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="condconv")
class DepthwiseCondConv2D(_CondConvBase):
    """Depthwise 2-D convolution with one kernel per example, mixed from `num_experts` experts.

    Called with `inputs` `[B, H, W, C]` and `routing_weights` `[B, num_experts]`; returns
    `[B, H', W', C * depth_multiplier]`. The kernel weight is
    `[num_experts, kernel_h, kernel_w, C, depth_multiplier]`, the bias `[num_experts, C * depth_multiplier]`.

    Args:
        kernel_size: one number or (height, width).
        num_experts: number of experts that are mixed.
        depth_multiplier: output channels per input channel.
        kwargs: as for `CondConv2D`.

    Raises:
        ValueError: an argument or an input's shape is impossible.
    """

    def __init__(
        self, kernel_size: int | tuple[int, int], num_experts: int, *, depth_multiplier: int = 1, **kwargs: Any
    ) -> None:
        """See the class."""
        super().__init__(kernel_size, num_experts, **kwargs)
        self.depth_multiplier = whole(depth_multiplier, "depth_multiplier")

    def build(self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]) -> None:
        """Create the experts."""
        channels = self._check_shapes(inputs_shape, routing_weights_shape)
        self.add_experts((*self.kernel_size, channels, self.depth_multiplier), channels * self.depth_multiplier)

    def call(self, inputs: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve each channel of each example with its own kernel: a sum of shifted products."""
        return self._finish(self.convolve(inputs, mix_experts(routing_weights, self.kernel)), routing_weights)

    def convolve(self, inputs: Tensor, kernels: Tensor) -> Tensor:
        """Apply one kernel per example, without bias: `kernels` is `[B, kernel_h, kernel_w, C, depth_multiplier]`."""
        taps = self.taps(inputs)
        multiplier = self.depth_multiplier
        if multiplier > 1:
            taps = [ops.repeat(tap, multiplier, axis=-1) for tap in taps]
        channels = inputs.shape[-1] * multiplier
        kernels = ops.reshape(kernels, (-1, len(taps), 1, 1, channels))
        outputs = taps[0] * kernels[:, 0]
        for position, tap in enumerate(taps[1:], start=1):
            outputs = outputs + tap * kernels[:, position]
        return outputs

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Return `(B, H', W', C * depth_multiplier)`."""
        channels = math.prod((inputs_shape[-1] or 0, self.depth_multiplier))
        return (inputs_shape[0], *self._output_size(inputs_shape), channels)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "depth_multiplier": self.depth_multiplier}


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{name} must be one or two whole numbers from 1 on, not {value!r}.")
    return pair[0], pair[1]
