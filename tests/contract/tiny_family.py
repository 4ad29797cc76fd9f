"""A whole family of networks in some sixty lines: its spec, what builds it, and what registers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
from keras import layers

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D, Family


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """A stem, one CondConv block (depthwise and pointwise with one routing), and a CondConv classifier of its own."""

    name: str
    num_experts: int
    image_size: int = 32
    num_classes: int = 5
    filters: int = 8

    def static(self) -> TinySpec:
        return replace(self, num_experts=0)

    def changed(self, **overrides: Any) -> TinySpec:
        if unknown := overrides.keys() - asdict(self).keys():
            raise ConfigurationError(f"Unknown architecture parameter {', '.join(sorted(unknown))}.")
        return replace(self, **overrides)

    def overrides(self, registered: TinySpec) -> Mapping[str, Any]:
        given, before = asdict(self), asdict(registered)
        return {key: value for key, value in given.items() if value != before[key]}


def build_tiny(architecture: TinySpec, *, input_size: int | None = None) -> keras.Model:
    size = input_size or architecture.image_size
    pixels = keras.Input((size, size, 3), name="pixels")
    x = layers.Conv2D(architecture.filters, 3, strides=4, padding="same", activation="relu6", name="stem")(pixels)
    routing = {"block": _route(x, architecture.num_experts, "block")}
    convolve = DepthwiseCondConv2D(3, architecture.num_experts, padding="same", use_bias=False, name="block_depthwise")
    x = layers.BatchNormalization(name="block_norm")(convolve(x, routing["block"]))
    x = CondConv2D(2 * architecture.filters, 1, architecture.num_experts, name="block_project")(x, routing["block"])
    x = layers.Activation("swish", name="block_activation")(x)
    routing["classifier"] = _route(x, 2, "classifier")
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = CondConv2D(architecture.num_classes, 1, 2, name="classifier")(x, routing["classifier"])
    logits = layers.Flatten(name="logits")(x)
    return keras.Model(pixels, {"logits": logits, "routing": routing}, name=architecture.name.replace("-", "_"))


def _route(x: Any, experts: int, name: str) -> Any:
    pooled = layers.GlobalAveragePooling2D(name=f"{name}_routing_pool")(x)
    return layers.Dense(experts, activation="sigmoid", name=f"{name}_routing")(pooled)


TINY = TinySpec(name="tiny-condconv-3e", num_experts=3)
FAMILY = Family("tiny", (TINY,), build_tiny)
