"""What all layers with experts share: the experts themselves, how they are initialised, and how they are mixed."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def mix_experts(routing_weights: Tensor, experts: Tensor) -> Tensor:
    """Mix expert kernels per example.

    Args:
        routing_weights: `[B, num_experts]`.
        experts: `[num_experts, ...]`.

    Returns:
        `[B, ...]`, the sum of the experts weighted by each example's routing weights.
    """
    num_experts, *shape = experts.shape
    mixed = ops.matmul(routing_weights, ops.reshape(experts, (num_experts, -1)))
    return ops.reshape(mixed, (-1, *shape))


@keras.saving.register_keras_serializable(package="condconv")
class PerExpertInitializer(keras.initializers.Initializer):
    """Initialises every expert like a layer of its own.

    An ordinary initialiser would count the experts' axis as part of the receptive field and start too small.
    """

    def __init__(self, initializer: Any) -> None:
        """Wrap anything that `keras.initializers.get` takes."""
        self.initializer = keras.initializers.get(initializer)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        """Return `[num_experts, ...]`, drawn expert by expert."""
        # A Keras initialiser with a fixed seed returns the same values at each call, so every expert needs its own.
        return ops.stack([self._of_expert(expert)(shape[1:], dtype=dtype) for expert in range(shape[0])])

    def _of_expert(self, expert: int) -> Any:
        if not isinstance(self.initializer, keras.initializers.Initializer):  # a plain function
            return self.initializer
        config = self.initializer.get_config()
        if "seed" in config and config["seed"] is None:
            return self.initializer.clone()
        if isinstance(config.get("seed"), int):
            return type(self.initializer).from_config({**config, "seed": config["seed"] + expert})
        return self.initializer  # without randomness, or with a seed generator, which gives new values at each call

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"initializer": keras.initializers.serialize(self.initializer)}


class ExpertLayer(keras.layers.Layer):
    """A layer whose kernel and bias are mixed per example; what its experts are, and what comes last."""

    def __init__(
        self,
        num_experts: int,
        *,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "he_normal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        """See the layers."""
        super().__init__(**kwargs)
        self.num_experts = whole(num_experts, "num_experts")
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def add_experts(self, kernel_shape: tuple[int, ...], channels: int) -> None:
        """Create `kernel` `[num_experts, *kernel_shape]`, and `bias` `[num_experts, channels]` or None."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.num_experts, *kernel_shape),
            initializer=PerExpertInitializer(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = (
            self.add_weight(
                name="bias",
                shape=(self.num_experts, channels),
                initializer=PerExpertInitializer(self.bias_initializer),
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
            if self.use_bias
            else None
        )

    def check_routing(self, shape: tuple[int | None, ...]) -> None:
        """Refuse routing weights of another shape than `[B, num_experts]`."""
        if len(shape) != 2 or shape[-1] != self.num_experts:
            raise ValueError(f"{self.name} takes routing_weights [batch, {self.num_experts}], not shape {shape}.")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


def whole(value: int, name: str) -> int:
    """A count, which must be 1 at least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}.")
    return value
