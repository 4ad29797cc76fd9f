"""What a model takes and returns, in the shape of TensorFlow Serving's metadata."""

from __future__ import annotations

from typing import Any

from condconv_serve.domain import ModelInfo, OutputSpec
from condconv_serve.fronts.tfserving.signatures import METHODS, signatures_of

DATA_TYPES = {"bytes": "DT_STRING", "str": "DT_STRING", "uint8": "DT_UINT8", "float32": "DT_FLOAT"}
"""TensorFlow's names of data types."""


def metadata_body(model: ModelInfo) -> dict[str, Any]:
    """The metadata of a version, as the JSON of `GetModelMetadataResponse`."""
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
        "metadata": {"signature_def": {"signature_def": signature_defs(model)}},
    }


def signature_defs(model: ModelInfo) -> dict[str, Any]:
    """All signatures, as the JSON of `SignatureDef` by name."""
    return {
        name: {
            "inputs": {signature.input.name: _tensor(signature.input, f"{name}_{signature.input.name}:0")},
            "outputs": {
                output.name: _tensor(output, f"StatefulPartitionedCall:{place}")
                for place, output in enumerate(signature.outputs)
            },
            "method_name": METHODS[signature.method],
            "defaults": {},
        }
        for name, signature in signatures_of(model).items()
    }


def _tensor(spec: OutputSpec, name: str) -> dict[str, Any]:
    """A tensor, as the JSON of `TensorInfo`; the number of rows is open."""
    return {
        "dtype": DATA_TYPES[spec.dtype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in (-1, *spec.shape)],
            "unknown_rank": False,
        },
        "name": name,
    }
