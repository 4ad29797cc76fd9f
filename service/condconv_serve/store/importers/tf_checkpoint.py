"""Weights named as in the published TensorFlow 1 checkpoints of EfficientNet and CondConv.

The names look like `efficientnet-condconv-b0-8e/blocks_9/tpu_batch_normalization_1/gamma`. The scope, an optional
`model/` part, `tpu_` before `batch_normalization` and the running numbers depend on the TensorFlow version that wrote
them, so layers are recognised by block, kind, and order inside the block.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from condconv_serve.domain import readable
from condconv_serve.domain.manifest import WeightsKind
from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.assembly import Translation

EMA_SUFFIX = "/ExponentialMovingAverage"

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Not part of the network: the step counter and what optimisers keep beside each variable.
_TRAINING_STATE = re.compile(r"(^|/)(global_step|beta[12]_power|RMSProp(_\d+)?|Momentum|Adam(_\d+)?)$")
_NAME = re.compile(
    r"^(?:[^/]+/)*?"  # whatever scopes it was built in
    r"(?P<part>stem|head|blocks_\d+)/"
    r"(?P<se>se/)?"
    r"(?P<kind>(?:tpu_)?batch_normalization|depthwise_conv2d|depthwise_cond_conv2d|cond_conv2d|conv2d|dense)"
    r"(?:_(?P<number>\d{1,9}))?/"
    r"(?P<leaf>\w+)$"
)
_LEAVES = {
    "kernel": "kernel",
    "depthwise_kernel": "kernel",
    "condconv_kernel": "kernel",
    "depthwise_condconv_kernel": "kernel",
    "bias": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
}


def read_tf_checkpoint(prefix: str | Path) -> dict[str, NDArray[Any]]:
    """Read all tensors of a TensorFlow checkpoint.

    Args:
        prefix: path without `.index` and `.data-...`.

    Raises:
        ImportFailed: no checkpoint lies there, or it can't be read.
    """
    import tensorflow as tf

    name = Path(prefix).name
    if not os.path.isfile(f"{prefix}.index"):
        raise ImportFailed(
            f"{name} is no readable TensorFlow checkpoint: there is no {name}.index. A checkpoint is named by its "
            "prefix, its .index file, its directory, or a .tar, .tar.gz or .tgz of that."
        )
    if readable(prefix) != str(prefix):
        raise ImportFailed(f"{name} can't be read: TensorFlow opens no path that isn't UTF-8. Rename it.")
    try:
        # Not load_checkpoint, which goes wherever a directory of the same name points.
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        if _OBJECT_GRAPH in shapes:
            raise ImportFailed(
                f"{name} is a checkpoint of TensorFlow 2 (or a SavedModel's), which holds the program's objects in "
                "place of the layers' names. Load it with the program that wrote it; if the network was built by "
                'condconv_serve.nn.build_network, save it with model.save_weights("model.weights.h5").'
            )
        return {name: reader.get_tensor(name) for name in shapes}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).replace(f"{Path(prefix).parent}/", "")  # TensorFlow names the server's directory
        raise ImportFailed(f"{name} is no readable TensorFlow checkpoint: {reason}") from error


def translate_official(tensors: Mapping[str, NDArray[Any]], *, use_ema: bool = True) -> Translation:
    """Translate tensors named as in the published checkpoints.

    Args:
        tensors: by name. If some are called `<name>/ExponentialMovingAverage`, those are taken, as the official
            evaluation does.
        use_ema: False takes the raw values instead.

    Raises:
        ImportFailed: averages are wanted, but only some variables have one, or raw values, but there are only averages.
    """
    chosen = _choose(tensors, use_ema=use_ema)
    translation = Translation()
    layers: dict[tuple[str, str], dict[int, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in chosen:
        match = _NAME.match(name)
        if match is None or match["leaf"] not in _LEAVES:
            if not _TRAINING_STATE.search(name):
                translation.unknown.append(name)
            continue
        layers[match["part"], _group(match)][int(match["number"] or 0)].append((name, _LEAVES[match["leaf"]]))
    has_expansion = {part: len(numbers) > 1 for (part, group), numbers in layers.items() if group == "pointwise"}
    for (part, group), numbers in layers.items():
        targets = _targets(part, group, expands=has_expansion.get(part, False))
        for position, number in enumerate(sorted(numbers)):
            for name, leaf in numbers[number]:
                if position < len(targets):
                    translation.add(f"{targets[position]}/{leaf}", name, chosen[name])
                else:
                    translation.unknown.append(name)
    return translation


def choose_copy(tensors: Mapping[str, NDArray[Any]], *, use_ema: bool) -> dict[str, NDArray[Any]]:
    """One copy of a checkpoint's variables, under their own names, without what training keeps beside them.

    Args:
        tensors: by name, as for `translate_official`.
        use_ema: whether averages are preferred.

    Raises:
        ImportFailed: as for `translate_official`.
    """
    chosen = _choose(tensors, use_ema=use_ema)
    return {name: value for name, value in chosen.items() if not _TRAINING_STATE.search(name)}


def _choose(tensors: Mapping[str, NDArray[Any]], *, use_ema: bool) -> dict[str, NDArray[Any]]:
    chosen = _choose_averaged(tensors) if use_ema else _choose_raw(tensors)
    if not use_ema and all(_TRAINING_STATE.search(name) for name in chosen) and len(chosen) < len(tensors):
        raise ImportFailed("The checkpoint holds averaged weights only, and these are refused.")
    return chosen


def kind_of(tensors: Mapping[str, NDArray[Any]], *, use_ema: bool) -> tuple[WeightsKind, bool]:
    """Which weights `translate_official` takes, and whether there are others."""
    averaged = sum(name.endswith(EMA_SUFFIX) for name in tensors)
    if not averaged:
        return "unmarked", False
    return "averaged" if use_ema else "raw", averaged < sum(not _TRAINING_STATE.search(name) for name in tensors)


def _choose_averaged(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    averaged = {name.removesuffix(EMA_SUFFIX): value for name, value in tensors.items() if name.endswith(EMA_SUFFIX)}
    raw = _choose_raw(tensors)
    if not averaged:
        return raw
    if without := sorted(name for name in raw if name not in averaged and not _TRAINING_STATE.search(name)):
        raise ImportFailed(
            f"The checkpoint holds averaged weights, but not of {len(without)} variables such as {without[0]}."
        )
    return averaged


def _choose_raw(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: value for name, value in tensors.items() if not name.endswith(EMA_SUFFIX)}


def _group(match: re.Match[str]) -> str:
    """The kinds that are numbered together: within a block, order tells their members apart."""
    kind = match["kind"]
    if match["se"]:
        return "se"
    if kind.endswith("batch_normalization"):
        return "norm"
    if kind.startswith("depthwise"):
        return "depthwise"
    return "dense" if kind == "dense" else "pointwise"


def _targets(part: str, group: str, *, expands: bool) -> list[str]:
    """Our layers of one kind in one part of the network, in order."""
    if part == "stem":
        return {"pointwise": ["stem"], "norm": ["stem_norm"]}.get(group, [])
    if part == "head":
        return {"pointwise": ["head"], "norm": ["head_norm"], "dense": ["logits"]}.get(group, [])
    block = part.replace("blocks", "block")
    convolutions = ["expand"] if expands else []
    return {
        "pointwise": [f"{block}_{conv}" for conv in (*convolutions, "project")],
        "depthwise": [f"{block}_depthwise"],
        "norm": [f"{block}_{conv}_norm" for conv in (*convolutions, "depthwise", "project")],
        "se": [f"{block}_se_reduce", f"{block}_se_expand"],
        "dense": [f"{block}_routing"],
    }[group]
