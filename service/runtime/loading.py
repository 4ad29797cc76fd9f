"""From a bundle to an engine that is ready to compute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from service.domain import RoutingProfile, ServedModel
from service.errors import BundleError, ConfigurationError
from service.metrics import Metrics
from service.nn import Architecture, build_efficientnet, cost, get_architecture
from service.runtime.engines import build_engine
from service.runtime.plan import EnginePlan
from service.runtime.tensorflow_engine import limit_threads
from service.store import Bundle, read_labels, read_profile, read_weights

logger = logging.getLogger(__name__)

MAX_NAMED = 8
"""How many tensors an error message lists."""


def load_model(bundle: Bundle, plan: EnginePlan, *, metrics: Metrics | None = None) -> ServedModel:
    """Build a bundle's network, give it its weights, and make an engine of it as planned.

    Raises:
        BundleError: the architecture is unknown, or tensors are missing, left over or misshaped; they are named.
    """
    if plan.device == "cpu":
        limit_threads(plan.threads_per_stream)
    manifest = bundle.manifest
    name = f"{manifest.name}/{manifest.version}"
    architecture = _architecture(bundle)
    preprocessing = manifest.preprocessing.to_domain()
    labels = read_labels(bundle)
    profile = _profile(bundle, architecture)
    network = load_network(bundle)
    network_cost = cost(network)
    logger.info("%s: network built, weights set", name)
    engine, computed_by = build_engine(network, preprocessing, plan, metrics=metrics)
    logger.info("%s: %s engine built (%s, %s)", name, computed_by.engine, computed_by.precision, computed_by.device)
    return ServedModel(
        name=manifest.name,
        version=manifest.version,
        engine=engine,
        computed_by=computed_by,
        labels=labels,
        preprocessing=preprocessing,
        routing_blocks=architecture.routing_blocks(),
        num_experts=architecture.num_experts,
        description={
            **manifest.model_dump(mode="json", exclude_none=True),
            "parameters": network_cost.parameters,
            "multiply_adds": network_cost.multiply_adds,
            "model_card": bundle.model_card,
        },
        routing_profile=profile,
    )


def load_network(bundle: Bundle) -> keras.Model:
    """Build a bundle's network and give it its weights.

    Raises:
        BundleError: as for `load_model`.
    """
    manifest = bundle.manifest
    network = build_efficientnet(_architecture(bundle), input_size=manifest.preprocessing.image_size)
    set_weights(network, read_weights(bundle), name=f"{manifest.name}/{manifest.version}")
    return network


def _architecture(bundle: Bundle) -> Architecture:
    manifest = bundle.manifest
    name, spec = f"{manifest.name}/{manifest.version}", manifest.architecture
    try:
        architecture = get_architecture(spec.name, **{"num_classes": manifest.num_classes, **spec.overrides})
    except ConfigurationError as error:
        raise BundleError(f"{name}: {error}") from error
    if architecture.num_classes != manifest.num_classes:
        raise BundleError(
            f"{name}: the architecture has {architecture.num_classes} classes, the manifest says "
            f"{manifest.num_classes}."
        )
    return architecture


def _profile(bundle: Bundle, architecture: Architecture) -> RoutingProfile | None:
    profile = read_profile(bundle)
    shape = (len(architecture.routing_blocks()), architecture.num_experts)
    if profile is not None and profile.mean.shape != shape:
        raise BundleError(
            f"{bundle.manifest.name}/{bundle.manifest.version}: the routing profile is of {profile.mean.shape} blocks "
            f"and experts, but the architecture has {shape}."
        )
    return profile


def set_weights(network: Any, weights: Mapping[str, NDArray[np.float32]], *, name: str) -> None:
    """Give a network its weights by variable path.

    Raises:
        BundleError: names the tensors that are missing, left over or misshaped.
    """
    variables = {variable.path: variable for variable in network.weights}
    problems = [
        *(f"{path} is missing" for path in sorted(set(variables) - set(weights))),
        *(f"{path} is not part of it" for path in sorted(set(weights) - set(variables))),
        *(
            f"{path} is {list(weights[path].shape)} instead of {list(variable.shape)}"
            for path, variable in variables.items()
            if path in weights and tuple(weights[path].shape) != tuple(variable.shape)
        ),
    ]
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise BundleError(f"{name}: the weights don't fit the architecture: {'; '.join(problems[:MAX_NAMED])}{more}.")
    for path, variable in variables.items():
        variable.assign(weights[path])
