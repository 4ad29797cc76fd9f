"""From a bundle to an engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ModelInfo, RoutingLayout, RoutingProfile, ServedModel
from condconv_serve.errors import BundleError, ConfigurationError
from condconv_serve.nn import (
    build_network,
    cost,
    get_architecture,
    give_values,
    network_from_json,
    outline,
    variable_shapes,
)
from condconv_serve.runtime.engines import build_engine
from condconv_serve.runtime.official_jpeg import crop_jpeg
from condconv_serve.runtime.outputs import classes_of, output_specs, routing_layout, task_of
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.runtime.tensorflow_engine import limit_threads, return_memory
from condconv_serve.store import OWN_NETWORK, Bundle, read_labels, read_network, read_profile, read_weights
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_NAMED = 8
"""How many tensors an error message lists."""


def load_model(bundle: Bundle, plan: EnginePlan, *, metrics: Metrics | None = None) -> ServedModel:
    """Build a bundle's network, give it its weights, and make an engine of it as planned.

    Raises:
        BundleError: the architecture is unknown, its own network holds a forbidden layer, or tensors are missing, left
            over or misshaped; they are named.
    """
    if plan.device == "cpu":
        limit_threads(plan.threads_per_stream)
    if plan.engine == "openvino" or plan.native != "off":
        return_memory()
    manifest = bundle.manifest
    name = f"{manifest.name}/{manifest.version}"
    preprocessing = manifest.preprocessing.to_domain()
    labels = read_labels(bundle)
    network = load_network(bundle)
    layout = routing_layout(network)
    info = ModelInfo(
        manifest=manifest,
        labels=labels,
        preprocessing=preprocessing,
        outputs=output_specs(network),
        routing=layout,
        cost=cost(network),
        model_card=bundle.model_card,
        routing_profile=_profile(bundle, layout),
    )
    logger.info("%s: network built, weights set", name)
    engine, computed_by = build_engine(network, preprocessing, plan, metrics=metrics)
    level = logging.WARNING if computed_by.native.fell_back else logging.INFO
    logger.log(level, "%s: computed by %s", name, computed_by)
    return ServedModel(
        info=info,
        engine=engine,
        computed_by=computed_by,
        crop_jpeg=crop_jpeg if preprocessing.official_decoding else None,
    )


def load_network(bundle: Bundle) -> keras.Model:
    """Build a bundle's network and give it its weights.

    Returns:
        A functional model that takes normalised pixels `[B, image_size, image_size, 3]` and returns
        `{"logits": [B, classes], "routing": {block: [B, experts]}}`, and `features` if your own network names them; a
        detector returns `boxes` `[B, anchors, 4]` and `scores` `[B, anchors, classes]` for `logits`.

    Raises:
        BundleError: as for `load_model`.
    """
    manifest = bundle.manifest
    name = f"{manifest.name}/{manifest.version}"
    weights = read_weights(bundle)
    try:
        network = (
            _own_network(bundle, weights)
            if manifest.architecture.name == OWN_NETWORK
            else _registered_network(bundle, weights)
        )
    except ConfigurationError as error:
        raise BundleError(f"{name}: {error}") from error
    if task_of(network) != manifest.task:
        raise BundleError(f"{name}: the manifest says {manifest.task}, but the network is one for {task_of(network)}.")
    _check_classes(bundle, classes_of(network))
    return network


def _registered_network(bundle: Bundle, weights: Mapping[str, NDArray[np.float32]]) -> keras.Model:
    """Build a registered network with the bundle's weights, after checking that these are as large as it says."""
    manifest, spec = bundle.manifest, bundle.manifest.architecture
    architecture = get_architecture(spec.name, **{"num_classes": manifest.num_classes, **spec.overrides})
    _check_classes(bundle, architecture.num_classes)
    size = manifest.preprocessing.image_size
    network = outline(lambda: build_network(architecture, input_size=size))
    _check_weights(_shapes(network), weights, name=f"{manifest.name}/{manifest.version}")
    give_values(network, weights)
    return network


def _own_network(bundle: Bundle, weights: Mapping[str, NDArray[np.float32]]) -> keras.Model:
    """Build the network that the bundle describes, with its weights, after checking that these are as large as that."""
    manifest, text = bundle.manifest, read_network(bundle)
    name, size = f"{manifest.name}/{manifest.version}", manifest.preprocessing.image_size
    if overrides := sorted(manifest.architecture.overrides):
        raise BundleError(f"{name}: your own network has no architecture parameter {', '.join(overrides)}.")
    _check_weights(variable_shapes(text, image_size=size), weights, name=name)
    network = network_from_json(text, image_size=size)
    network.trainable = True  # layers may have been frozen when it was trained
    shape = tuple(network.inputs[0].shape) if len(network.inputs) == 1 else None
    if shape != (None, size, size, 3):
        raise BundleError(f"{name}: the network takes {shape}, but the manifest's rows are {(None, size, size, 3)}.")
    output = network.output
    names = set(output) - {"features"} if isinstance(output, dict) else set()
    if names != {"logits", "routing"} or not isinstance(output["routing"], dict):
        raise BundleError(f"{name}: the network must return logits and routing, and perhaps features.")
    tensors = [(block, tensor) for block, tensor in output.items() if block != "routing"]
    for block, tensor in [*tensors, *output["routing"].items()]:
        if not isinstance(tensor, keras.KerasTensor) or len(tensor.shape) != 2 or None in tensor.shape[1:]:
            raise BundleError(f"{name}: the network's output {block} must have two axes.")
    set_weights(network, weights, name=name)
    return network


def _check_classes(bundle: Bundle, classes: int) -> None:
    manifest = bundle.manifest
    if classes != manifest.num_classes:
        raise BundleError(
            f"{manifest.name}/{manifest.version}: the architecture has {classes} classes, the manifest says "
            f"{manifest.num_classes}."
        )


def _profile(bundle: Bundle, layout: RoutingLayout) -> RoutingProfile | None:
    """The bundle's reference profile, which must have the network's blocks and experts."""
    profile = read_profile(bundle)
    if profile is not None and profile.mean.shape != layout.shape:
        raise BundleError(
            f"{bundle.manifest.name}/{bundle.manifest.version}: the routing profile is of {profile.mean.shape} blocks "
            f"and experts, but the network has {layout.shape}."
        )
    return profile


def set_weights(network: Any, weights: Mapping[str, NDArray[np.float32]], *, name: str) -> None:
    """Give a network its weights by variable path.

    Raises:
        BundleError: names the tensors that are missing, left over or misshaped.
    """
    _check_weights(_shapes(network), weights, name=name)
    for variable in network.weights:
        variable.assign(weights[variable.path])


def _shapes(network: Any) -> dict[str, tuple[int, ...]]:
    return {variable.path: tuple(variable.shape) for variable in network.weights}


def _check_weights(
    shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, NDArray[np.float32]], *, name: str
) -> None:
    problems = [
        *(f"{path} is missing" for path in sorted(set(shapes) - set(weights))),
        *(f"{path} is not part of it" for path in sorted(set(weights) - set(shapes))),
        *(
            f"{path} is {list(weights[path].shape)} instead of {list(shape)}"
            for path, shape in shapes.items()
            if path in weights and tuple(weights[path].shape) != tuple(shape)
        ),
    ]
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise BundleError(f"{name}: the weights don't fit the architecture: {'; '.join(problems[:MAX_NAMED])}{more}.")
