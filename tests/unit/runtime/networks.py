"""Small networks that hold every layer and every way in which layers read each other."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D

SIZE = 15
Apply = Callable[..., Any]


def network(apply: Apply, *, size: int | None = SIZE) -> Any:
    """Someone's own network: `apply(inputs, routing)` between a router and a classifier."""
    inputs = keras.Input((size, size, 3))
    routing = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(inputs))
    features = layers.GlobalAveragePooling2D()(apply(inputs, routing))
    return keras.Model(inputs, {"logits": layers.Dense(5)(features), "routing": {"block_0": routing}})


def normalised(layer: Any) -> Apply:
    """The layer, then a batch norm, then an activation: what gets folded."""
    return lambda x, *r: layers.Activation("swish")(layers.BatchNormalization()(layer(x, *r)))


def static(layer: Any) -> Apply:
    return lambda x, r: normalised(layer)(x)


def pooled(dense: Apply) -> Apply:
    """A dense layer of a vector, which is then a map of one pixel again."""

    def apply(x: Any, r: Any) -> Any:
        y = dense(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x)), r)
        return layers.Reshape((1, 1, y.shape[-1]))(y)

    return apply


def condconv_dense_of_a_flat_map(x: Any, r: Any) -> Any:
    y = layers.Flatten()(layers.Conv2D(4, 3, strides=5)(x))
    return layers.Reshape((1, 1, 6))(CondConvDense(6, 3, activation="relu6", bias_initializer="normal")(y, r))


def reshaped(layer: Any) -> Apply:
    """The layer, of a map that was made a map of one pixel."""

    def apply(x: Any, r: Any) -> Any:
        x = layers.Conv2D(3, 3, strides=8, activation="relu")(x)
        return layer(layers.Reshape((1, 1, 12))(layers.Flatten()(x)))

    return apply


def dense_of_two_flat_maps(x: Any, r: Any) -> Any:
    """Of one size, and of different shapes."""
    dense = layers.Dense(6)
    tall = layers.MaxPooling2D((3, 15))(layers.Conv2D(4, 1)(x))
    wide = layers.MaxPooling2D((15, 3))(layers.Conv2D(4, 1)(x))
    square = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(20, 1)(x))
    return layers.Reshape((1, 1, 6))(layers.Add()([dense(layers.Flatten()(y)) for y in (tall, wide, square)]))


@keras.saving.register_keras_serializable(package="tests")
class Shrunk(layers.Layer):
    """An activation isn't always what comes last."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.activation = keras.activations.relu

    def call(self, x: Any) -> Any:
        return x - self.activation(x) - 1


def read_twice(x: Any, r: Any) -> Any:
    y = layers.Conv2D(4, 3)(x)
    return layers.Add()([layers.BatchNormalization()(y), layers.Activation("tanh")(y)])


def read_by_an_operation(x: Any, r: Any) -> Any:
    y = layers.Conv2D(4, 3)(x)
    return layers.BatchNormalization()(y) + keras.ops.tanh(y)


def read_by_an_inner_model(x: Any, r: Any) -> Any:
    y = layers.Conv2D(4, 3)(x)
    inputs = keras.Input(y.shape[1:])
    inner = keras.Model(inputs, layers.Activation("tanh")(layers.Conv2D(4, 1)(inputs)))
    return layers.Add()([layers.BatchNormalization()(y), inner(y)])


def shared_convolution(x: Any, r: Any) -> Any:
    convolve = layers.Conv2D(4, 3)
    return layers.Add()([layers.BatchNormalization()(convolve(x)), convolve(layers.Activation("tanh")(x))])


def shared_norm(x: Any, r: Any) -> Any:
    norm = layers.BatchNormalization()
    return layers.Add()([norm(layers.Conv2D(3, 3, padding="same")(x)), norm(x)])


class DoubledConv2D(layers.Conv2D):
    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


def routing_by_keyword(x: Any, r: Any) -> Any:
    return layers.BatchNormalization()(CondConv2D(4, 3, 3)(x, routing_weights=r))


def channels_first(x: Any, r: Any) -> Any:
    x = layers.Permute((3, 1, 2))(x)
    return layers.Permute((2, 3, 1))(layers.Conv2D(4, 3, data_format="channels_first")(x))


def unknown_layers(x: Any, r: Any) -> Any:
    x = layers.SeparableConv2D(8, 3, padding="same")(layers.LayerNormalization()(x))
    x = layers.PReLU(shared_axes=(1, 2))(layers.GroupNormalization(4)(x))
    return layers.Conv2DTranspose(4, 3, strides=2)(layers.AveragePooling2D(2)(x))


def squeezed(convolve: Apply, *, scale_first: bool = False) -> Apply:
    """Squeeze-and-excitation, whose product may move into the kernel of the convolution that follows."""

    def apply(x: Any, r: Any) -> Any:
        x = layers.Conv2D(6, 3)(x)
        scale = layers.Conv2D(6, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        return convolve(layers.Multiply()([scale, x] if scale_first else [x, scale]), r)

    return apply


def product_read_twice(x: Any, r: Any) -> Any:
    return layers.Add()([layers.Conv2D(6, 1)(x), x])


def convolution_of_product_called_twice(x: Any, r: Any) -> Any:
    convolve = layers.Conv2D(3, 1)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Add()([convolve(layers.Multiply()([x, scale])), convolve(x)])


def product_called_twice(x: Any, r: Any) -> Any:
    multiply = layers.Multiply()
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Add()([layers.Conv2D(3, 1)(multiply([x, scale])), multiply([x, x])])


NETWORKS = {
    "conv": static(layers.Conv2D(4, 3, strides=2, padding="same")),
    "conv, dilated": static(layers.Conv2D(4, (3, 5), dilation_rate=(2, 1))),
    "conv, groups": static(layers.Conv2D(6, 3, groups=3)),
    "conv, activation before the norm": static(layers.Conv2D(4, 3, activation="relu")),
    "depthwise": static(layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)),
    "depthwise, dilated": static(layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", use_bias=False)),
    "condconv": normalised(CondConv2D(4, 1, 3, use_bias=False)),
    "condconv, bias": normalised(CondConv2D(4, (3, 5), 3, strides=2, padding="same")),
    "condconv, dilated and strided": normalised(CondConv2D(4, 3, 3, strides=2, dilation_rate=2)),
    "condconv, activation": normalised(CondConv2D(4, 3, 3, activation="relu")),
    "depthwise condconv": normalised(DepthwiseCondConv2D(5, 3, strides=2, padding="same", use_bias=False)),
    "depthwise condconv, bias": normalised(DepthwiseCondConv2D((3, 5), 3, depth_multiplier=2)),
    "depthwise condconv, 1x1": normalised(DepthwiseCondConv2D(1, 3)),
    "depthwise condconv, strides differ": normalised(DepthwiseCondConv2D(3, 3, strides=(1, 2))),
    "depthwise condconv, dilated": normalised(DepthwiseCondConv2D(3, 3, dilation_rate=(1, 2), padding="same")),
    "depthwise condconv, dilated and strided": normalised(DepthwiseCondConv2D(3, 3, strides=2, dilation_rate=2)),
    "depthwise condconv, activation": normalised(DepthwiseCondConv2D(3, 3, activation="relu6")),
    "routing by keyword": routing_by_keyword,
    "squeezed conv": squeezed(static(layers.Conv2D(4, 1))),
    "squeezed conv, scale first": squeezed(static(layers.Conv2D(4, 1, use_bias=False)), scale_first=True),
    "squeezed conv, activation": squeezed(lambda x, r: layers.Conv2D(4, 1, activation="relu")(x)),
    "squeezed conv, groups": squeezed(static(layers.Conv2D(4, 1, groups=2))),
    "squeezed conv, strided": squeezed(static(layers.Conv2D(4, 1, strides=2))),
    "squeezed conv, 3x3": squeezed(static(layers.Conv2D(4, 3))),
    "squeezed conv, larger than the map": squeezed(static(layers.Conv2D(200, 1))),
    "squeezed condconv": squeezed(normalised(CondConv2D(4, 1, 3))),
    "squeezed condconv, scale first": squeezed(normalised(CondConv2D(4, 1, 3, use_bias=False)), scale_first=True),
    "squeezed depthwise": squeezed(static(layers.DepthwiseConv2D(1))),
    "squeezed, read twice": squeezed(product_read_twice),
    "squeezed, convolution called twice": convolution_of_product_called_twice,
    "squeezed, product called twice": product_called_twice,
    "product of two maps": lambda x, r: layers.Conv2D(4, 1)(layers.Multiply()([x, layers.Conv2D(3, 1)(x)])),
    "product of three": lambda x, r: layers.Conv2D(4, 1)(layers.Multiply()([x, x, x])),
    "norm on the input": lambda x, r: layers.BatchNormalization()(x),
    "read twice": read_twice,
    "read by an operation": read_by_an_operation,
    "read by an inner model": read_by_an_inner_model,
    "shared convolution": shared_convolution,
    "shared norm": shared_norm,
    "derived convolution": static(DoubledConv2D(4, 3)),
    "channels first": channels_first,
    "unknown layers": unknown_layers,
    "max pool": lambda x, r: layers.MaxPooling2D((3, 2), (2, 1))(layers.Conv2D(4, 3)(x)),
    "max pool, same": lambda x, r: layers.MaxPooling2D(3, 2, "same")(layers.Conv2D(4, 2)(x)),
    "max pool of zeros around": lambda x, r: layers.MaxPooling2D(3, 2)(
        layers.ZeroPadding2D(1)(layers.ReLU()(layers.Conv2D(4, 3)(x)))
    ),
    "max pool of zeros around any numbers": lambda x, r: layers.MaxPooling2D(3, 2)(
        layers.ZeroPadding2D(1)(layers.Conv2D(4, 3, bias_initializer="ones")(x))
    ),
    "dense on a map": lambda x, r: layers.Dense(6, activation="swish", use_bias=False)(x),
    "dense, norm": pooled(static(layers.Dense(6))),
    "condconv dense": pooled(lambda x, r: CondConvDense(6, 3, bias_initializer="normal")(x, r)),
    "condconv dense, norm": pooled(normalised(CondConvDense(6, 3, bias_initializer="normal"))),
    "condconv dense, without a bias": pooled(normalised(CondConvDense(40, 3, use_bias=False))),
    "condconv dense of a flat map": condconv_dense_of_a_flat_map,
    "conv of a reshaped map": reshaped(layers.Conv2D(4, 1)),
    "conv of zeros around a reshaped map": lambda x, r: layers.Conv2D(4, 3)(reshaped(layers.ZeroPadding2D(1))(x, r)),
    "max pool of zeros around a reshaped map": lambda x, r: layers.MaxPooling2D(3, 2)(
        reshaped(layers.ZeroPadding2D(1))(x, r)
    ),
    "max pool of zeros around a layer that holds an activation": lambda x, r: layers.Conv2D(4, 1)(
        layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(Shrunk()(x)))
    ),
    "dense on a reshaped map": reshaped(layers.Dense(6)),
    "dense of two flat maps": dense_of_two_flat_maps,
    "dropout and noise": lambda x, r: layers.GaussianNoise(1.0)(layers.Dropout(0.5)(x)),
}
