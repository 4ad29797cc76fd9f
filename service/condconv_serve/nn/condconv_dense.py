"""The conditionally parameterised fully connected layer: a classifier with experts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from condconv_serve.nn.experts import ExpertLayer, whole

Tensor = Any


@keras.saving.register_keras_serializable(package="condconv")
class CondConvDense(ExpertLayer):
    """Fully connected layer with one matrix per example, mixed from `num_experts` experts.

    Called with `inputs` `[B, C]` and `routing_weights` `[B, num_experts]` (usually sigmoids); returns `[B, units]`. The
    kernel weight is `[num_experts, C, units]`, the bias `[num_experts, units]`; both are mixed by the routing weights.
    No matrix is made per example: since `x (sum_e r_e W_e) = sum_e (r_e x) W_e`, it is one product of `[B, num_experts
    * C]` and `[num_experts * C, units]`.

    Args:
        units: numbers per example in the output.
        num_experts: number of experts that are mixed.
        activation: applied to the result.
        use_bias: whether each expert has a bias.
        kernel_initializer: applied to each expert separately; so is `bias_initializer`.
        kernel_regularizer: applied to the experts; so are `bias_regularizer`, `kernel_constraint`, `bias_constraint`.

    Raises:
        ValueError: an argument or an input's shape is impossible.
    """

    def __init__(
        self, units: int, num_experts: int, *, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        """See the class."""
        super().__init__(num_experts, kernel_initializer=kernel_initializer, **kwargs)
        self.units = whole(units, "units")

    def build(self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]) -> None:
        """Create the experts."""
        if len(inputs_shape) != 2 or inputs_shape[-1] is None:
            raise ValueError(f"{self.name} takes inputs [batch, channels], not shape {inputs_shape}.")
        self.check_routing(routing_weights_shape)
        self.add_experts((inputs_shape[-1], self.units), self.units)

    def call(self, inputs: Tensor, routing_weights: Tensor) -> Tensor:
        """Multiply each example with its own matrix, all in one product."""
        outputs = mixed_product(inputs, routing_weights, self.kernel)
        if self.bias is not None:
            outputs = outputs + ops.matmul(routing_weights, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], routing_weights_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Return `(B, units)`."""
        return (inputs_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "units": self.units}


def mixed_product(inputs: Tensor, routing_weights: Tensor, experts: Tensor) -> Tensor:
    """Multiply each example with its mixture of matrices: `[routing * x] @ [W_1; ...; W_E]`.

    Args:
        inputs: `[B, C]`.
        routing_weights: `[B, num_experts]`.
        experts: `[num_experts, C, units]`.

    Returns:
        `[B, units]`.
    """
    num_experts, channels, units = experts.shape
    weighted = ops.expand_dims(routing_weights, 2) * ops.expand_dims(inputs, 1)
    return ops.matmul(
        ops.reshape(weighted, (-1, num_experts * channels)), ops.reshape(experts, (num_experts * channels, units))
    )
