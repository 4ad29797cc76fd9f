"""A bundle's network made a detector that can be trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain.manifest import OWN_NETWORK
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import Architecture, build_network, family_of, get_architecture, outline
from condconv_serve.nn.families import to_manifest
from condconv_serve.nn.model_graph import ModelGraph, layers_within
from condconv_serve.nn.ssd import BOX_ENCODINGS, CLASS_LOGITS, SSDSpec, detector_for, predictions_of
from condconv_serve.runtime.layer_kinds import is_condconv
from condconv_serve.store import Bundle, read_weights
from condconv_serve.store.importers.upcycle import upcycle
from condconv_serve.training.network import Part

UPCYCLE_NOISE = 0.5
_CLASSES = re.compile(r"class_predictor_\d+/")
_FRESH_MOMENTUM = 0.9
"""Of the statistics of fresh batch norms: a short run must be enough for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """A detector to train.

    Attributes:
        spec: its architecture.
        network: with weights; returns `boxes`, `scores` and `routing`.
        carried: paths of the variables whose values come from the bundle.
    """

    spec: SSDSpec
    network: keras.Model
    carried: frozenset[str]

    @property
    def architecture(self) -> dict[str, Any]:
        """As a manifest has it."""
        return to_manifest(self.spec)


def architecture_of(bundle: Bundle) -> Architecture:
    """The registered architecture of a bundle.

    Raises:
        ConfigurationError: it has a network of its own.
    """
    spec = bundle.manifest.architecture
    if spec.name == OWN_NETWORK:
        raise ConfigurationError(
            f"{bundle.manifest.name} has a network of its own; only registered architectures become detectors."
        )
    return get_architecture(spec.name, **{"num_classes": bundle.manifest.num_classes, **spec.overrides})


def detector_of(
    bundle: Bundle,
    *,
    classes: int,
    keep_classes: bool,
    image_size: int,
    maps: Mapping[str, Any],
    experts: int | None,
    seed: int,
) -> Detector:
    """Make a detector of a bundle: weights of the same path and shape are carried over, all others are fresh.

    Args:
        bundle: of a classifier or a detector.
        classes: of the new detector.
        keep_classes: whether they are those of the bundle, so that its class predictors are kept.
        image_size: pixels per side.
        maps: what `detector_for` is told of maps, prior boxes and predictors of a classifier's detector.
        experts: makes a CondConv network of a static one; None leaves it as it is.
        seed: of what is drawn.

    Raises:
        ConfigurationError: it has a network of its own, or experts are asked for and can't be had.
        BundleError: the weights are damaged.
    """
    parent = architecture_of(bundle)
    weights = read_weights(bundle)
    if isinstance(parent, SSDSpec):
        spec = parent.changed(num_classes=classes, image_size=image_size)
        if not keep_classes:
            weights = {path: value for path, value in weights.items() if not _CLASSES.match(path)}
    else:
        spec = detector_for(parent, num_classes=classes, image_size=image_size, **maps)
    static = build_network(spec)
    carried = _carry_over(static, weights, bundle)
    if experts is None:
        return Detector(spec, static, carried)
    mixed = replace(spec, backbone=with_experts(spec.backbone, experts), condconv_extras=bool(spec.extras))
    values = upcycle(
        {variable.path: np.array(variable) for variable in static.weights}, mixed, noise=UPCYCLE_NOISE, seed=seed
    )
    network = build_network(mixed)
    for variable in network.weights:
        variable.assign(values[variable.path])
    return Detector(mixed, network, carried)


def with_experts(architecture: Architecture, experts: int) -> Architecture:
    """The same classifier with experts where the registered CondConv network of its kind has them.

    Raises:
        ConfigurationError: it has experts already, or there is no such network.
    """
    static: Any = architecture
    if static.num_experts:
        raise ConfigurationError(
            f"{static.name} has {static.num_experts} experts already; their number can't be changed."
        )
    registered: Any = get_architecture(static.name)
    for twin in family_of(static).architectures:
        other: Any = twin
        if other.num_experts and replace(other.static(), name=static.name) == registered:
            return twin.changed(**{**static.overrides(registered), "num_experts": experts})
    raise ConfigurationError(f"There is no CondConv network like {static.name}.")


def check_possible(bundle: Bundle, *, experts: int | None) -> None:
    """Refuse at once what can't be made a detector.

    Raises:
        ConfigurationError: it has a network of its own, or experts are asked for and can't be had.
    """
    parent = architecture_of(bundle)
    if experts is not None:
        with_experts(parent.backbone if isinstance(parent, SSDSpec) else parent, experts)


def trainer_of(detector: Detector) -> keras.Model:
    """The network that is trained: pixels in, `[B, A, 4 + 1 + classes]` out, encoded boxes and logits."""
    outputs = predictions_of(detector.network).output
    joined = keras.layers.Concatenate(axis=-1, dtype="float32")([outputs[BOX_ENCODINGS], outputs[CLASS_LOGITS]])
    return keras.Model(detector.network.inputs[0], joined)


def choose_trained(detector: Detector, part: Part) -> int:
    """Choose which layers learn: all; experts, routers and the head; routers and the head; or the head.

    The head is what the backbone doesn't have. Batch norms whose statistics were carried over keep them; fresh ones
    learn them.

    Returns:
        The number of trained parameters.

    Raises:
        ConfigurationError: routing or experts are to learn, but the network has none.
    """
    network = detector.network
    if not network.output["routing"] and part in ("routing", "experts"):
        raise ConfigurationError("This network has no CondConv blocks, so only `all` or `head` can be trained.")
    graph = ModelGraph(network)
    computed = [graph.producer(weights) for weights in network.output["routing"].values()]
    routers = {id(call.operation) for call in computed if call is not None}
    backbone = {variable.path for variable in outline(lambda: build_network(detector.spec.backbone)).weights}
    for layer in layers_within(network):
        if isinstance(layer, keras.Model) or not layer.weights:
            continue
        paths = {variable.path for variable in layer.weights}
        learns = (
            part == "all"
            or not paths & backbone
            or (part != "head" and id(layer) in routers)
            or (part == "experts" and is_condconv(layer))
        )
        if isinstance(layer, keras.layers.BatchNormalization):
            learns = not paths & detector.carried
            layer.momentum = _FRESH_MOMENTUM
        layer.trainable = learns
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


def _carry_over(network: keras.Model, weights: Mapping[str, NDArray[Any]], bundle: Bundle) -> frozenset[str]:
    carried = []
    for variable in network.weights:
        value = weights.get(variable.path)
        if value is not None and value.shape == tuple(variable.shape):
            variable.assign(value)
            carried.append(variable.path)
    if not carried:
        raise ConfigurationError(f"No weights of {bundle.manifest.name} fit the detector.")
    return frozenset(carried)


def labels_kept(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether a data set's classes are those of a bundle, in any order."""
    return len(names) == len(known) and set(names) == set(known)
