"""From files with published weights to the tensors of one of our networks."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from condconv_serve.domain.manifest import WeightsKind
from condconv_serve.errors import ImportFailed
from condconv_serve.nn import Architecture, build_network, family_of, outline, weight_shapes
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.published import Published
from condconv_serve.store.archive import extract_tar
from condconv_serve.store.bundle import has_negative_variance
from condconv_serve.store.importers import hub, keras_file, numpy_file, torch_file
from condconv_serve.store.importers.assembly import Translation, assemble
from condconv_serve.store.importers.evaluation import Naming
from condconv_serve.store.importers.foreign import unreadable_kind
from condconv_serve.store.importers.hints import detector_hint, hint
from condconv_serve.store.importers.names import Copy, plain_copy
from condconv_serve.store.importers.published import (
    choose_published,
    split_name,
    translate_published,
    without_background,
)
from condconv_serve.store.importers.source_config import (
    SourceConfig,
    check_architecture,
    config_from_metadata,
    read_config,
)
from condconv_serve.store.importers.tf_checkpoint import choose_copy, kind_of, read_tf_checkpoint, translate_official
from condconv_serve.store.importers.timm import translate_timm
from condconv_serve.store.importers.upcycle import static_twin, upcycle
from condconv_serve.store.tensors import load_tensors

MAX_BYTES = 8 * 2**30
"""The most that a compressed source may unpack to."""
_MAX_NAMED = 8
_MAX_MEMBERS = 1000
_ARCHIVES = (".tar.gz", ".tgz", ".tar")

# Files of a TensorFlow checkpoint beside its .index.
_PART = re.compile(r"^(.+)\.(?:meta|data-\d{5}-of-\d{5})$")

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcycling:
    """That a static source is to become a CondConv network; `noise` as in `upcycle`."""

    noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All tensors of a source by name, whose names they bear, which kind they are, and what else the source says."""

    naming: Naming
    tensors: Tensors
    kind: WeightsKind
    has_other: bool = False
    config: SourceConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A network's weights by path, and what was read.

    Attributes:
        architecture: with as many classes as the weights have, and as such networks are published.
        weights: by path.
        source: what was read.
        published: whose names the weights bear; None: those of EfficientNets, or our own.
        conventions: parameters of the architecture that follow from these names.
        without_background: whether a class for the background was dropped.
    """

    architecture: Any
    weights: dict[str, NDArray[np.floating[Any]]]
    source: Source
    published: Published | None = None
    conventions: Mapping[str, Any] = field(default_factory=dict)
    without_background: bool = False


def import_weights(
    source: Path,
    architecture: Any,
    *,
    given: Mapping[str, Any] | None = None,
    use_ema: bool = True,
    upcycling: Upcycling | None = None,
) -> Imported:
    """Read published weights and fit them to an architecture.

    Args:
        source: see `read_source`.
        architecture: the network that they are for; its number of classes doesn't count.
        given: parameters of the architecture that were asked for. They must fit: the weights must have as many classes
            as `num_classes` says. Others are as the weights have them.
        use_ema: whether averaged weights are preferred where the source has them.
        upcycling: if the source is the architecture's static twin.

    Raises:
        ImportFailed: the source can't be read, or doesn't fit; says which tensors are to blame, and which architecture
            might fit.
    """
    given = given or {}
    static_twin(architecture) if upcycling else None
    read = read_source(source, use_ema=use_ema)
    if read.config is not None:
        check_architecture(read.config)
    try:
        published = _published(read, architecture, source.name)
    except ImportFailed as error:
        raise ImportFailed(
            f"{error}{detector_hint(read.tensors, architecture, upcycling=upcycling is not None)}"
        ) from error
    conventions = {} if published is None else _conventions(read, published, architecture, given)
    architecture = architecture.changed(**conventions)
    built = static_twin(architecture) if upcycling else architecture
    translation = _translate(read, published, built, use_ema=use_ema)
    background = published is not None and published.background and "num_classes" not in given
    background = background and without_background(translation)
    shapes = {tensor.path: tensor.value.shape for tensor in translation.tensors}
    counted = family_of(built).count_classes(built, shapes)
    num_classes = given.get("num_classes") or counted or built.num_classes
    if num_classes != built.num_classes:
        built = replace(built, num_classes=num_classes)
    label = f"the static twin of {architecture.name}" if upcycling else architecture.name
    try:
        weights = assemble(translation, weight_shapes(built), architecture=label)
    except ImportFailed as error:
        advice = hint(read.tensors, translation, built, upcycling=upcycling is not None)
        raise ImportFailed(f"{error}{advice}") from error
    if negative := [path for path, value in weights.items() if has_negative_variance(path, value)]:
        raise ImportFailed(
            f"{source.name} is damaged, or no network that was trained: {len(negative)} batch norms have variances "
            f"below 0, such as {negative[0]}, down to {weights[negative[0]].min():g}."
        )
    architecture = replace(architecture, num_classes=num_classes)
    if upcycling:
        weights = upcycle(weights, architecture, noise=upcycling.noise)
    return Imported(
        architecture=architecture,
        weights=weights,
        source=read,
        published=published,
        conventions=conventions,
        without_background=background,
    )


def check_importable(architecture: Architecture) -> None:
    """Check that something is known of how published weights of a family are named.

    Raises:
        ImportFailed: it isn't.
    """
    if not isinstance(architecture, EfficientNetSpec) and not family_of(architecture).published:
        raise ImportFailed(
            f"Weights of {architecture.name} can't be imported: nothing is known of how they are published."
        )


def _published(read: Source, architecture: Architecture, source: str) -> Published | None:
    """Whose names the weights bear; None if they are those of EfficientNets, or our own in a file of Keras."""
    ways = [way for way in family_of(architecture).published if way.layers(architecture)]
    if not ways:
        return None
    if read.naming == "keras":
        known = {path.rpartition("/")[0] for path in weight_shapes(architecture)}
        layers = {split_name(name, "tensorflow")[0] for name in read.tensors}
        if layers <= known or any(name.startswith("layers/") for name in layers):
            return None
    return choose_published(ways, architecture, read.tensors, source=source)


def _conventions(
    read: Source, published: Published, architecture: Architecture, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What such networks have, but for what was asked for."""
    found = dict(published.conventions)
    classifier = next((theirs for theirs, ours in published.layers(architecture).items() if ours == "logits"), None)
    leaves = {
        leaf for layer, leaf in (split_name(name, published.layout) for name in read.tensors) if layer == classifier
    }
    if leaves and not any("bias" in leaf or leaf == "1" for leaf in leaves):
        found["classifier_bias"] = False
    return {key: value for key, value in found.items() if key not in given}


def _translate(read: Source, published: Published | None, built: Architecture, *, use_ema: bool) -> Translation:
    expected = weight_shapes(built)
    if published is not None:
        tensors = choose_copy(read.tensors, use_ema=use_ema)
        return translate_published(tensors, published, built, expected)
    match read.naming:
        case "timm":
            return translate_timm(read.tensors, expected)
        case "keras":
            return keras_file.translate_keras(read.tensors, outline(lambda: build_network(built)))
        case "official":
            return translate_official(read.tensors, use_ema=use_ema)


def read_source(source: Path, *, use_ema: bool = True) -> Source:
    """Read all tensors of a source.

    Args:
        source: a TensorFlow checkpoint (its prefix, its `.index` file, a directory or a `.tar.gz` that holds just one),
            a `.safetensors`, `.npz` or PyTorch file with published names, a directory of the Hugging Face Hub that
            holds one, or a `.keras`, `.weights.h5` or `.h5` file.
        use_ema: whether averaged weights are preferred where a source has both.

    Raises:
        ImportFailed: there is nothing to read, or it can't be read; says what else to import.
    """
    if match := _PART.match(source.name):  # another file of a TensorFlow checkpoint
        source = source.with_name(match[1]) if source.with_name(f"{match[1]}.index").exists() else source
    if not (source.exists() or source.with_name(f"{source.name}.index").exists()):
        raise ImportFailed(f"{source.name} can't be read: there is no such file, directory or TensorFlow checkpoint.")
    if (kind := unreadable_kind(source)) is not None:
        raise ImportFailed(f"{source.name} is {kind}")
    if source.is_dir() and (file := hub.weights_in(source)) is not None:
        source = file
    if source.is_file() and source.name.endswith(keras_file.SUFFIXES):
        return Source(naming="keras", tensors=keras_file.read_keras(source, max_bytes=MAX_BYTES), kind="unmarked")
    if source.is_file() and source.name.endswith(".safetensors"):
        return _read_safetensors(source, use_ema=use_ema)
    if source.is_file() and source.suffix == ".npz":
        copy = plain_copy(numpy_file.read_npz(source, max_bytes=MAX_BYTES), use_ema=use_ema, source=source.name)
        return _named(copy, config=read_config(source), use_ema=use_ema)
    if source.is_file() and torch_file.is_torch(source):
        found = torch_file.read_torch(source, use_ema=use_ema)
        return _named(found.copy, config=read_config(source) or found.config, use_ema=use_ema)
    tensors = _read_checkpoint(source)
    chosen, has_other = kind_of(tensors, use_ema=use_ema)
    return Source(naming="official", tensors=tensors, kind=chosen, has_other=has_other)


def _read_safetensors(file: Path, *, use_ema: bool) -> Source:
    try:
        tensors = load_tensors(file)
        with safe_open(file, "np") as opened:
            metadata = opened.metadata()
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).replace(f"{file.parent}/", "")
        raise ImportFailed(f"{file.name} can't be read as safetensors: {reason}") from error
    config = config_from_metadata(metadata, origin=f"the metadata of {file.name}")
    copy = plain_copy(tensors, use_ema=use_ema, source=file.name)
    return _named(copy, config=read_config(file) or config, use_ema=use_ema)


def _named(copy: Copy, *, config: SourceConfig | None, use_ema: bool) -> Source:
    """A source whose file doesn't tell whose names its tensors bear."""
    if any("blocks" in name.split(".") for name in copy.weights):
        return Source(naming="timm", tensors=copy.weights, kind=copy.kind, has_other=copy.has_other, config=config)
    chosen, has_other = kind_of(copy.weights, use_ema=use_ema)
    if chosen == "unmarked":
        chosen, has_other = copy.kind, copy.has_other
    return Source(naming="official", tensors=copy.weights, kind=chosen, has_other=has_other, config=config)


def _read_checkpoint(source: Path) -> Tensors:
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
        found = [(file.suffix == ".json", kind) for file in directory.iterdir() if (kind := unreadable_kind(file))]
        what = f" It holds {min(found)[1]}" if found else ""  # what isn't JSON tells more
        raise ImportFailed(f"{name} holds no TensorFlow checkpoint (*.index).{what}")
    if len(prefixes) > 1:
        some = ", ".join(str(prefix.relative_to(directory)) for prefix in prefixes[:_MAX_NAMED])
        raise ImportFailed(f"{name} holds {len(prefixes)} checkpoints ({some}){advice}.")
    return prefixes[0]
