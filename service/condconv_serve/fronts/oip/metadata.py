"""What the server and its models say of themselves: the protocol's metadata, and Triton's model configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from condconv_serve import __version__
from condconv_serve.domain import ModelInfo, OutputSpec, ServedModel
from condconv_serve.fronts.context import ServedModels
from condconv_serve.fronts.oip.datatypes import datatype_of
from condconv_serve.fronts.oip.inputs import ACCEPTED
from condconv_serve.fronts.tensor_inference import inputs_of
from condconv_serve.tasks.named_outputs import outputs_of

NAME = "condconv-serve"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""Triton's names of its extensions."""
PLATFORM = "condconv_bundle"
BATCH = -1
"""Size of an axis that may have any length."""
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel, models: ServedModels) -> dict[str, Any]:
    """What a model takes and returns.

    `pixels` is listed as UINT8; it may be FP32, too. `parameters` is text, as gRPC has no lists: JSON where it is
    several values.

    Args:
        model: the version that is described.
        models: those that are served, to list its versions and aliases.
    """
    info = model.info
    return {
        "name": info.name,
        "versions": sorted(models.models().get(info.name, {info.version: model}), key=int),
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in inputs_of(info)],
        "outputs": [_tensor(spec) for spec in outputs_of(info)],
        "parameters": model_parameters(info, aliases=models.aliases(info.name)),
    }


def model_parameters(model: ModelInfo, *, aliases: Mapping[str, Any]) -> dict[str, str]:
    """What else is worth knowing of a model: its version, its CondConv blocks with their experts, its aliases.

    And the labels of a detector, whose answers have its classes by number only.
    """
    named = {"labels": json.dumps([label.label for label in model.labels])} if model.task == "detection" else {}
    return {
        "version": model.version,
        "task": model.task,
        **named,
        "image_size": str(model.preprocessing.image_size),
        "pixels_datatypes": json.dumps(ACCEPTED["pixels"]),
        "routing_blocks": json.dumps(model.routing.blocks),
        "routing_experts": json.dumps(model.routing.experts),
        "aliases": json.dumps(sorted(aliases)),
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """A model's configuration as Triton has it, which its tools read before they send requests.

    `max_batch_size` is 0, which says that the axis of rows stands among `dims`. Otherwise an image would have no axis
    at all, and Triton's tools can't send that.
    """
    info = model.info
    return {
        "name": info.name,
        "platform": PLATFORM,
        "backend": model.computed_by.engine,
        "max_batch_size": 0,
        "input": [{**_config_tensor(spec), "optional": True} for spec in inputs_of(info)],
        "output": [_config_tensor(spec) for spec in outputs_of(info)],
        "parameters": {
            name: {"string_value": value}
            for name, value in model_parameters(info, aliases={}).items()
            if name != "aliases"
        },
    }


def _tensor(spec: OutputSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": [BATCH, *spec.shape]}


def _config_tensor(spec: OutputSpec) -> dict[str, Any]:
    datatype = datatype_of(spec.dtype)
    return {
        "name": spec.name,
        "data_type": _CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"),
        "dims": [BATCH, *spec.shape],
    }
