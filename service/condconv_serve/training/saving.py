"""Puts your own network into the model store, so that it can be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from condconv_serve.domain import Label, Preprocessing
from condconv_serve.domain.manifest import Accuracy, PreprocessingSpec, Provenance
from condconv_serve.errors import BundleError, ConfigurationError
from condconv_serve.nn import network_from_json, network_to_json
from condconv_serve.runtime.outputs import routing_layout, with_routing
from condconv_serve.store import OWN_NETWORK, NewBundle, write_bundle
from condconv_serve.store.new_bundle import next_version, write_next_bundle
from condconv_serve.validation import describe_errors

_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a bundle says of its weights.

    Attributes:
        licence: SPDX licence expression of the weights.
        model_card: Markdown; a short one is written if None.
        accuracy: measurements, if there are any.
        source: where the weights come from, in a few words.
        method: how they were made.
    """

    licence: str = "unknown"
    model_card: str | None = None
    accuracy: Sequence[Accuracy] = ()
    source: str = "a Keras model"
    method: str = "saved with save_bundle"


def save_bundle(
    model: keras.Model,
    store: str | Path,
    *,
    name: str,
    version: str | int | None = None,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    description: Description | None = None,
) -> Path:
    """Save a trained Keras model as a bundle that the server loads like any other.

    Args:
        model: a functional or sequential classifier of Keras's own layers, `CondConv2D`, `DepthwiseCondConv2D` and
            `CondConvDense`. It takes normalised pixels float32 `[B, image_size, image_size, 3]` and returns one logit
            per class (a final softmax is left out); the routing weights are found for you. Or it returns
            `{"logits": [B, classes], "routing": {block: [B, experts]}}`.
        store: the model store, a directory; created if absent.
        name: of the model: lower-case letters, digits, `.`, `_` and `-`.
        version: a whole number from 1; one more than the largest there is if None.
        labels: one name per class, in the order of the logits.
        preprocessing: how photos become rows of `image_size` pixels, and how these are normalised: the same that the
            model was trained with. For a model that scales pixels itself, `mean=(0, 0, 0), std=(1, 1, 1)`.
        description: what else there is to say of the weights.

    Returns:
        The bundle's directory, `<store>/<name>/<version>`.

    Raises:
        ConfigurationError: the model can't be served, or can't be stored without code; says why and what to do.
        BundleError: labels, name or preprocessing don't fit, or the version exists already.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    description = description or Description()
    spec = to_spec(preprocessing)
    network = with_routing(model)
    classes = network.output["logits"].shape[-1]
    if len(labels) != classes:
        raise BundleError(f"{name}: {len(labels)} labels were given for {classes} classes.")
    text = network_to_json(network)
    rebuilt = rebuild(network, text, preprocessing)
    store = Path(store)
    store.mkdir(parents=True, exist_ok=True)
    new = NewBundle(
        name=name,
        version=next_version(store, name) if version is None else str(version),
        architecture={"name": OWN_NETWORK},
        network=text,
        preprocessing=spec,
        weights=read_values(rebuilt),
        labels=[Label(index, label) for index, label in enumerate(labels)],
        provenance=Provenance(source=description.source, method=description.method),
        licence=description.licence,
        model_card=_model_card(name, network, labels, preprocessing)
        if description.model_card is None
        else description.model_card,
        accuracy=tuple(description.accuracy),
    )
    return write_next_bundle(store, new) if version is None else write_bundle(store, new)


def to_spec(preprocessing: Preprocessing) -> PreprocessingSpec:
    """The preprocessing as a manifest has it.

    Raises:
        BundleError: an impossible value.
    """
    try:
        return PreprocessingSpec(**asdict(preprocessing))
    except ValidationError as error:
        raise BundleError(f"preprocessing: {describe_errors(error)}.") from error


def read_values(network: keras.Model) -> dict[str, NDArray[Any]]:
    """The values of all variables by path.

    Raises:
        ConfigurationError: two variables have the same path, or one isn't of floating-point numbers.
    """
    values: dict[str, NDArray[Any]] = {}
    for variable in network.weights:
        if "float" not in variable.dtype:
            raise ConfigurationError(
                f"{variable.path} is {variable.dtype}, but a bundle's weights are floating-point numbers. Give a "
                "Normalization layer its mean and variance as arguments instead of adapting it."
            )
        if variable.path in values:
            raise ConfigurationError(f"Two variables are called {variable.path}; give their layers other names.")
        values[variable.path] = np.array(variable)
    return values


def rebuild(network: keras.Model, text: str, preprocessing: Preprocessing) -> keras.Model:
    """Build the network as the server will, with these weights, and compare the two.

    The names of variables depend on how a network was put together, so those of the rebuilt one count.
    """
    rebuilt = network_from_json(text, image_size=preprocessing.image_size)
    size = rebuilt.inputs[0].shape[1:3]
    if size != (preprocessing.image_size,) * 2:
        raise ConfigurationError(
            f"The network takes {size[0]} x {size[1]} pixels, but preprocessing.image_size is "
            f"{preprocessing.image_size}."
        )
    for layer in network.layers:
        rebuilt.get_layer(layer.name).set_weights(layer.get_weights())
    rows = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected, found = (keras.tree.flatten(model(rows, training=False)) for model in (network, rebuilt))
    for one, other in zip(expected, found, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        if not np.isfinite(one).all():
            raise ConfigurationError("The network's answers are not finite.")
        if np.abs(one - other).max() > _TOLERANCE * max(1.0, float(np.abs(one).max())):
            raise ConfigurationError(
                "Built again from its description, the network answers differently: one of its layers keeps state "
                "outside of its weights and arguments."
            )
    return rebuilt


def _model_card(name: str, network: keras.Model, labels: Sequence[str], preprocessing: Preprocessing) -> str:
    layout = routing_layout(network)
    named = zip(layout.blocks, layout.experts, strict=True)
    blocks = ", ".join(f"{block} ({count} experts)" for block, count in named) or "none"
    return (
        f"# {name}\n\nAn image classifier of {len(labels)} classes, {preprocessing.image_size} pixels, saved from "
        f"Keras.\n\n- CondConv blocks: {blocks}\n- Parameters: {network.count_params():,}\n"
    )
