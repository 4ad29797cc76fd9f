"""From files with foreign weights to the tensors of one of our networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from service.errors import ImportFailed
from service.nn import Architecture, build_efficientnet
from service.store.importers.assembly import assemble
from service.store.importers.tf_checkpoint import read_tf_checkpoint, translate_official
from service.store.importers.timm import translate_timm


def import_weights(
    source: Path, architecture: Architecture, *, use_ema: bool = True
) -> dict[str, NDArray[np.floating[Any]]]:
    """Read foreign weights and fit them to an architecture.

    Args:
        source: a TensorFlow checkpoint (its prefix, its `.index` file, or a directory that holds just one), or a
            `.safetensors` file with the official names or timm's.
        architecture: the network that they are for.
        use_ema: whether averaged weights are preferred where the source has them.

    Returns:
        The values of all variables by path.

    Raises:
        ImportFailed: the source can't be read, or doesn't fit; says which tensors are to blame.
    """
    tensors = read_tensors(source)
    expected = {v.path: tuple(v.shape) for v in build_efficientnet(architecture).weights}
    if any(name.startswith("blocks.") for name in tensors):
        translation = translate_timm(tensors, expected)
    else:
        translation = translate_official(tensors, use_ema=use_ema)
    return assemble(translation, expected, architecture=architecture.name)


def read_tensors(source: Path) -> Mapping[str, NDArray[Any]]:
    """Read all tensors of a checkpoint or a safetensors file.

    Raises:
        ImportFailed: there is nothing to read, or it can't be read.
    """
    if source.suffix == ".safetensors":
        try:
            return dict(load_file(source))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise ImportFailed(f"{source.name} can't be read as safetensors: {error}") from error
    return read_tf_checkpoint(_checkpoint_prefix(source))


def _checkpoint_prefix(source: Path) -> Path:
    if source.is_dir():
        indexes = sorted(source.glob("*.index"))
        if len(indexes) != 1:
            raise ImportFailed(f"{source.name} holds {len(indexes)} checkpoints (*.index), so name one by its prefix.")
        return indexes[0].with_suffix("")
    return source.with_suffix("") if source.suffix == ".index" else source
