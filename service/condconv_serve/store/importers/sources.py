"""From files with published weights to the tensors of one of our networks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import Architecture, build_network, outline
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.store.archive import extract_tar
from condconv_serve.store.importers import keras_file, torch_file
from condconv_serve.store.importers.assembly import Translation, assemble
from condconv_serve.store.importers.hints import hint
from condconv_serve.store.importers.tf_checkpoint import read_tf_checkpoint, translate_official
from condconv_serve.store.importers.timm import translate_timm
from condconv_serve.store.importers.upcycle import static_twin, upcycle

MAX_BYTES = 8 * 2**30
"""The most that a compressed source may unpack to."""
_MAX_NAMED = 8
_MAX_MEMBERS = 1000
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_LOGITS = "logits/bias"

Naming = Literal["official", "timm", "keras"]
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcycling:
    """That a static source is to become a CondConv network; `noise` as in `upcycle`."""

    noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A network's weights by path, its architecture with as many classes as they have, and whose names they bore."""

    architecture: EfficientNetSpec
    weights: dict[str, NDArray[np.floating[Any]]]
    naming: Naming


def import_weights(
    source: Path,
    architecture: EfficientNetSpec,
    *,
    num_classes: int | None = None,
    use_ema: bool = True,
    upcycling: Upcycling | None = None,
) -> Imported:
    """Read published weights and fit them to an architecture.

    Args:
        source: see `read_source`.
        architecture: the network that they are for; its number of classes doesn't count.
        num_classes: how many classes they must have; as many as they happen to have if None.
        use_ema: whether averaged weights are preferred where the source has them.
        upcycling: if the source is the architecture's static twin.

    Raises:
        ImportFailed: the source can't be read, or doesn't fit; says which tensors are to blame, and which architecture
            might fit.
    """
    built = static_twin(architecture) if upcycling else architecture
    naming, tensors = read_source(source, use_ema=use_ema)
    network = outline(lambda: build_network(replace(built, num_classes=num_classes or built.num_classes)))
    expected = {variable.path: tuple(variable.shape) for variable in network.weights}
    match naming:
        case "timm":
            translation = translate_timm(tensors, expected)
        case "keras":
            translation = keras_file.translate_keras(tensors, network)
        case "official":
            translation = translate_official(tensors, use_ema=use_ema)
    if num_classes is None:
        num_classes = _count_classes(translation, default=built.num_classes)
        expected = {path: (*shape[:-1], num_classes) if _is_logits(path) else shape for path, shape in expected.items()}
    label = f"the static twin of {architecture.name}" if upcycling else architecture.name
    try:
        weights = assemble(translation, expected, architecture=label)
    except ImportFailed as error:
        raise ImportFailed(f"{error}{hint(translation, built, upcycling=upcycling is not None)}") from error
    if upcycling:
        weights = upcycle(weights, architecture, noise=upcycling.noise)
    return Imported(architecture=replace(architecture, num_classes=num_classes), weights=weights, naming=naming)


def importable(architecture: Architecture) -> EfficientNetSpec:
    """The architecture as the importers take it.

    Raises:
        ImportFailed: nothing is known of how published weights of its family are named.
    """
    if not isinstance(architecture, EfficientNetSpec):
        raise ImportFailed(f"Weights of {architecture.name} can't be imported; those of EfficientNets can.")
    return architecture


def _count_classes(translation: Translation, *, default: int) -> int:
    biases = [tensor.value for tensor in translation.tensors if tensor.path == _LOGITS]
    return len(biases[0]) if len(biases) == 1 and biases[0].ndim == 1 and len(biases[0]) else default


def _is_logits(path: str) -> bool:
    return path.startswith("logits/")


def read_source(source: Path, *, use_ema: bool = True) -> tuple[Naming, Tensors]:
    """Read all tensors of a source, and say whose names they bear.

    Args:
        source: a TensorFlow checkpoint (its prefix, its `.index` file, a directory or a `.tar.gz` that holds just one),
            a `.safetensors` or PyTorch file with the official names or timm's, or a `.keras` or `.weights.h5` file.
        use_ema: whether averaged weights are preferred where a PyTorch file has both.

    Raises:
        ImportFailed: there is nothing to read, or it can't be read.
    """
    if not (source.exists() or source.with_name(f"{source.name}.index").exists()):
        raise ImportFailed(f"{source.name} can't be read: there is no such file, directory or TensorFlow checkpoint.")
    if source.is_file() and source.name.endswith(keras_file.SUFFIXES):
        return "keras", keras_file.read_keras(source, max_bytes=MAX_BYTES)
    tensors = _read_named(source, use_ema=use_ema)
    return ("timm" if any(name.startswith("blocks.") for name in tensors) else "official"), tensors


def _read_named(source: Path, *, use_ema: bool) -> Tensors:
    if source.name.endswith(".safetensors"):
        try:
            return torch_file.without_prefix(load_file(source))
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            reason = str(error).replace(f"{source.parent}/", "")
            raise ImportFailed(f"{source.name} can't be read as safetensors: {reason}") from error
    if source.is_file() and source.name.endswith(torch_file.SUFFIXES):
        return torch_file.read_torch(source, use_ema=use_ema)
    if source.is_file() and source.name.endswith(_ARCHIVES):
        with tempfile.TemporaryDirectory() as scratch:
            into = Path(scratch) / "archive"
            extract_tar(source, into, max_bytes=MAX_BYTES, max_members=_MAX_MEMBERS)
            return read_tf_checkpoint(sole_checkpoint(into, source.name, "; unpack it and name one by its prefix"))
    if source.is_dir():
        return read_tf_checkpoint(sole_checkpoint(source, source.name or str(source), "; name one by its prefix"))
    return read_tf_checkpoint(source.with_suffix("") if source.suffix == ".index" else source)


def sole_checkpoint(directory: Path, name: str, advice: str = "") -> Path:
    """The prefix of the only TensorFlow checkpoint below a directory, which is called `name`.

    Raises:
        ImportFailed: there is none, or several; `advice` says what to do then.
    """
    # Macs put a hidden file beside each one.
    prefixes = [file.with_suffix("") for file in sorted(directory.rglob("*.index")) if not file.name.startswith(".")]
    if not prefixes:
        raise ImportFailed(f"{name} holds no TensorFlow checkpoint (*.index).")
    if len(prefixes) > 1:
        some = ", ".join(str(prefix.relative_to(directory)) for prefix in prefixes[:_MAX_NAMED])
        raise ImportFailed(f"{name} holds {len(prefixes)} checkpoints ({some}){advice}.")
    return prefixes[0]
