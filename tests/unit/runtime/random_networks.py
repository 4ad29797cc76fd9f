"""Random networks: any layers in any order, read by any other, with branches, residuals and several outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D

Tensor = Any
ACTIVATIONS = ("linear", "relu", "relu6", "silu", "hard_silu", "sigmoid", "hard_sigmoid", "tanh")


class RandomNetwork:
    """Makes a functional network of some steps, each of which reads what earlier ones computed."""

    def __init__(self, seed: int, *, size: int, steps: int) -> None:
        self.random = np.random.default_rng(seed)
        pixels = keras.Input((size, size, 3))
        self.maps: list[Tensor] = [pixels]
        self.vectors: list[Tensor] = [layers.GlobalAveragePooling2D()(pixels)]
        self.routings = [layers.Dense(experts, activation="sigmoid")(self.vectors[0]) for experts in (1, 3)]
        for _ in range(steps):
            self.step()
        read = [layers.GlobalAveragePooling2D()(x) for x in self.maps[-3:]] + self.vectors[-2:]
        logits = layers.Dense(5)(layers.Concatenate()(read))
        routing = {f"block_{number}": weights for number, weights in enumerate(self.routings[-2:])}
        self.model = keras.Model(pixels, {"logits": logits, "routing": routing})

    def choose(self, things: Any) -> Any:
        return things[int(self.random.integers(len(things)))]

    def map(self) -> Tensor:
        """One of the latest maps, mostly."""
        return self.choose(self.maps[-3:] if self.random.random() < 0.8 else self.maps)

    def step(self) -> None:
        steps: list[Callable[[], None]] = [
            *[self.convolution] * 4,
            *[self.depthwise] * 3,
            *[self.residual] * 3,
            *[self.excitation] * 2,
            self.activation,
            self.largest,
            self.norm,
            self.unknown,
            self.vector,
            self.routing,
        ]
        self.choose(steps)()

    def geometry(self, x: Tensor) -> dict[str, Any]:
        kernel = int(self.random.integers(1, 6))
        options: dict[str, Any] = {"kernel_size": (kernel, int(self.random.integers(1, 4)))}
        options["padding"] = "same" if min(x.shape[1:3]) < 8 else self.choose(["same", "same", "valid"])
        if self.random.random() < 0.15:
            options["dilation_rate"] = 2 if options["padding"] == "same" else 1
        elif min(x.shape[1:3]) > 3:
            options["strides"] = self.choose([1, 1, 2])
        return options

    def finished(self, x: Tensor) -> None:
        """With what often follows a convolution."""
        if self.random.random() < 0.6:
            x = layers.BatchNormalization()(x)
        if self.random.random() < 0.6:
            x = self.choose([layers.Activation(self.choose(ACTIVATIONS)), layers.ReLU(), layers.ReLU(6)])(x)
        if self.random.random() < 0.2:
            x = layers.Dropout(0.5)(x)
        self.maps.append(x)

    def convolution(self) -> None:
        x, filters = self.map(), int(self.random.integers(1, 20))
        if self.random.random() < 0.2:
            x = layers.ZeroPadding2D(((0, 1), (1, 2)))(x)
        options = self.geometry(x) if self.random.random() < 0.5 else {"kernel_size": 1}
        options |= {"use_bias": self.choose([True, False]), "activation": self.choose([None, None, "relu"])}
        routing = self.choose(self.routings)
        if self.random.random() < 0.5:
            self.finished(CondConv2D(filters, num_experts=routing.shape[-1], **options)(x, routing))
        else:
            self.finished(layers.Conv2D(filters, **options)(x))

    def depthwise(self) -> None:
        x = self.map()
        if self.random.random() < 0.5:
            x = layers.Conv2D(int(self.random.integers(1, 40)), 1, activation=self.choose(ACTIVATIONS))(x)
        routing = self.choose(self.routings)
        options = self.geometry(x)
        if self.random.random() < 0.5:
            self.finished(DepthwiseCondConv2D(num_experts=routing.shape[-1], **options)(x, routing))
        else:
            kernel, stride = options["kernel_size"], options.get("strides", 1)
            self.finished(layers.DepthwiseConv2D(kernel, strides=stride, padding=options["padding"])(x))

    def residual(self) -> None:
        x = self.map()
        same = [y for y in self.maps if y.shape == x.shape]
        other = self.choose(same)
        if self.random.random() < 0.5:
            other = layers.BatchNormalization()(layers.Conv2D(x.shape[-1], 3, padding="same")(other))
        join = self.choose([layers.Add(), layers.Add(), layers.Multiply(), lambda both: both[0] + both[1]])
        self.finished(join([x, other] if self.random.random() < 0.5 else [other, x]))

    def excitation(self) -> None:
        x = self.map()
        mean = layers.GlobalAveragePooling2D(keepdims=self.random.random() < 0.5)(x)
        channels = x.shape[-1]
        if len(mean.shape) == 2:
            scale = layers.Reshape((1, 1, channels))(layers.Dense(channels, activation="sigmoid")(mean))
        else:
            scale = layers.Conv2D(channels, 1, activation="hard_sigmoid")(mean)
        self.maps.append(layers.Multiply()([x, scale] if self.random.random() < 0.7 else [scale, x]))

    def activation(self) -> None:
        self.maps.append(layers.Activation(self.choose(ACTIVATIONS))(self.map()))

    def largest(self) -> None:
        x = self.map()
        if self.random.random() < 0.3:
            x = layers.ZeroPadding2D(1)(self.choose([layers.ReLU(), layers.Activation("tanh")])(x))
        size, stride = int(self.random.integers(2, 4)), int(self.random.integers(1, 3))
        padding = "same" if min(x.shape[1:3]) < 6 else self.choose(["same", "valid"])
        self.maps.append(layers.MaxPooling2D(size, stride, padding)(x))

    def norm(self) -> None:
        self.maps.append(layers.BatchNormalization(scale=self.choose([True, False]))(self.map()))

    def unknown(self) -> None:
        x = self.map()
        known = [
            layers.LayerNormalization(),
            layers.LeakyReLU(),
            layers.Conv2D(4, 3, padding="same", activation="gelu"),
        ]
        self.maps.append(self.choose(known)(x))

    def vector(self) -> None:
        x = self.map()
        x = self.choose([layers.Flatten(), layers.GlobalAveragePooling2D()])(x) if x.shape[1] < 9 else self.vectors[-1]
        units, activation = int(self.random.integers(1, 9)), self.choose(ACTIVATIONS)
        if self.random.random() < 0.3:
            routing = self.choose(self.routings)
            x = CondConvDense(units, routing.shape[-1], activation=activation)(x, routing)
        else:
            x = layers.Dense(units, activation=activation)(x)
        self.vectors.append(layers.BatchNormalization()(x) if self.random.random() < 0.2 else x)

    def routing(self) -> None:
        experts = int(self.random.integers(1, 5))
        activation = self.choose(["sigmoid", "sigmoid", "softmax"])
        pooled = layers.GlobalAveragePooling2D()(self.map())
        self.routings.append(layers.Dense(experts, activation=activation)(pooled))
