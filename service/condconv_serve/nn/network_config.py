"""A functional Keras network as a JSON document, and back.

Documents are data only, so you need not trust their author. Keras's own loader imports any module that a document
names. So each class in a document is first checked against a list: Keras's own layers and CondConv layers. Nothing else
is ever looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import keras

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.outline import outline

FORMAT = 1
MAX_BYTES = 8 * 2**20
"""Longest document that is read; one of a thousand layers has about 1 MB."""

_LAYER_NAMES = """
InputLayer Dense Identity Activation ReLU LeakyReLU PReLU ELU Softmax
Conv1D Conv2D DepthwiseConv2D SeparableConv2D Conv2DTranspose
MaxPooling2D AveragePooling2D GlobalAveragePooling2D GlobalMaxPooling2D GlobalAveragePooling1D GlobalMaxPooling1D
BatchNormalization LayerNormalization GroupNormalization UnitNormalization RMSNormalization Normalization
SpectralNormalization
Flatten Reshape Permute RepeatVector Cropping2D ZeroPadding2D UpSampling2D
Add Subtract Multiply Average Maximum Minimum Concatenate Dot
Dropout SpatialDropout1D SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout ActivityRegularization
Attention AdditiveAttention MultiHeadAttention GroupQueryAttention EinsumDense
Rescaling Resizing CenterCrop RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation
RandomTranslation RandomZoom RandomErasing RandomHue RandomSaturation RandomSharpness RandomShear
"""
_LAYERS = frozenset(_LAYER_NAMES.split())
_OURS = {
    "CondConv2D": "condconv_serve.nn.condconv",
    "CondConvDense": "condconv_serve.nn.condconv_dense",
    "DepthwiseCondConv2D": "condconv_serve.nn.condconv",
    "PerExpertInitializer": "condconv_serve.nn.experts",
}
_MODELS = {"Functional": "keras.src.models.functional", "Sequential": "keras"}
# Operations that `x + y`, `x[:, 1:]` and calls of `keras.ops` leave in a network: arithmetic, without callbacks or
# files.
_OPERATION_MODULES = ("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.math", "keras.src.ops.image")
_BASES = {
    "keras.initializers": keras.initializers.Initializer,
    "keras.regularizers": keras.regularizers.Regularizer,
    "keras.constraints": keras.constraints.Constraint,
}
_VALUES = frozenset({"__keras_tensor__", "__tensor__", "__slice__", "__ellipsis__"})


def network_to_json(network: keras.Model) -> str:
    """Write a network's structure, without weights and without what it was compiled with.

    Args:
        network: a functional model.

    Raises:
        ConfigurationError: it holds a layer or a function that a document can't; says which and what is allowed.
    """
    config = keras.saving.serialize_keras_object(network)
    config.pop("compile_config", None)
    _check(config)
    text = json.dumps({"format": FORMAT, "network": config}, indent=1)
    if len(text) > MAX_BYTES:
        raise ConfigurationError(f"The network's description has {len(text)} bytes; {MAX_BYTES} are allowed.")
    return text


def network_from_json(text: str, *, image_size: int) -> keras.Model:
    """Build the network that a document describes, with fresh weights.

    Args:
        text: what `network_to_json` gave.
        image_size: rows and columns of the input, if the document leaves them open.

    Raises:
        ConfigurationError: the document is damaged, or asks for more than layers. Nothing of it was executed.
    """
    config = _parse(text)
    _fix_input_size(config, image_size)
    try:
        network = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:  # Keras may raise anything
        reason = str(error).strip().splitlines()
        raise ConfigurationError(f"Keras can't build the network: {reason[-1] if reason else error!r}") from error
    if not isinstance(network, keras.Model) or not network.built:
        raise ConfigurationError("The network's description gives no finished model.")
    return network


def variable_shapes(text: str, *, image_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of each variable by its path. This takes no memory for them: a few bytes may ask for terabytes.

    Raises:
        ConfigurationError: as for `network_from_json`, or two variables have the same path.
    """
    network = outline(lambda: network_from_json(text, image_size=image_size))
    shapes: dict[str, tuple[int, ...]] = {}
    for variable in network.weights:
        if variable.path in shapes:
            raise ConfigurationError(f"Two variables are called {variable.path}; give their layers other names.")
        shapes[variable.path] = tuple(variable.shape)
    return shapes


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise ConfigurationError(f"The network's description has {len(text)} bytes; {MAX_BYTES} are allowed.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError("The network's description is not valid JSON.") from error
    if not isinstance(document, dict) or set(document) != {"format", "network"}:
        raise ConfigurationError("The network's description must hold `format` and `network`.")
    if document["format"] != FORMAT:
        raise ConfigurationError(f"The network's description has format {document['format']!r}, not {FORMAT}.")
    config = document["network"]
    if not isinstance(config, dict) or config.get("class_name") != "Functional" or "compile_config" in config:
        raise ConfigurationError("The network's description must be of a functional model that was not compiled.")
    _check(config)
    return config


def _check(config: Any) -> None:
    """Refuse everything but plain data and the known layers."""
    try:
        for item in _objects(config):
            _check_object(item)
    except RecursionError as error:
        raise ConfigurationError("The network's description is nested too deeply.") from error


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All dicts that Keras would make an object of, however deep."""
    if isinstance(value, dict):
        if "class_name" in value or "registered_name" in value or "module" in value:
            yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _objects(inner)


def _check_object(item: dict[str, Any]) -> None:
    name, module, registered = item.get("class_name"), item.get("module"), item.get("registered_name")
    if not isinstance(name, str):
        raise ConfigurationError("The network's description holds an object without a class.")
    if name in _VALUES and module is None and registered is None:
        return
    if isinstance(module, str):
        if _OURS.get(name) == module and registered == f"condconv>{name}":
            return
        if registered in (None, name) and _is_stock(module, name):
            return
    raise ConfigurationError(_refusal(item))


def _is_stock(module: str, name: str) -> bool:
    if module == "keras.layers":
        return name in _LAYERS
    if _MODELS.get(name) == module or (module, name) == ("keras", "DTypePolicy"):
        return True
    if module in _BASES:
        found = getattr(getattr(keras, module.removeprefix("keras.")), name, None)
        return isinstance(found, type) and issubclass(found, _BASES[module])
    if module in _OPERATION_MODULES:
        found = getattr(getattr(keras.src.ops, module.rsplit(".", 1)[1]), name, None)
        return isinstance(found, type) and issubclass(found, keras.Operation) and found.__module__ == module
    return (module, name) in (("keras.src.ops.core", "Cast"), ("keras.src.ops.core", "StopGradient"))


def _refusal(item: dict[str, Any]) -> str:
    """Say what a network may consist of; names are cut, since they may be anything."""
    kind = str(item.get("class_name"))[:80]
    inner = item.get("config")
    where = f" {str(inner['name'])[:80]!r}" if isinstance(inner, dict) and inner.get("name") else ""
    if kind == "function":
        return (
            f"The function {str(inner)[:80]!r} can't be stored in a bundle; activations and initialisers must be "
            "Keras's own."
        )
    return (
        f"{kind}{where} can't be stored in a bundle: a network is made of Keras's own layers for images (no Lambda, "
        "no classes of your own), CondConv2D, DepthwiseCondConv2D and CondConvDense."
    )


def _fix_input_size(config: dict[str, Any], image_size: int) -> None:
    for layer in config["config"].get("layers", ()):
        if isinstance(layer, dict) and layer.get("class_name") == "InputLayer":
            shape = layer["config"].get("batch_shape")
            if isinstance(shape, list) and len(shape) == 4 and shape[1] is None and shape[2] is None:
                shape[1:3] = [image_size, image_size]
