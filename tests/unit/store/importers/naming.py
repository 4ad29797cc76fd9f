"""Names and layouts of other people's files, from ours: the other way round than the importers."""

from __future__ import annotations

import numpy as np

from tests.contract import narrow_family

FIRST_OF_STAGE = {0: 0, 1: 1, 2: 3, 3: 5, 4: 8, 5: 11, 6: 15}  # of B0
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
LAYERS = {
    "expand": "conv_pw",
    "expand_norm": "bn1",
    "depthwise": "conv_dw",
    "depthwise_norm": "bn2",
    "project": "conv_pwl",
    "project_norm": "bn3",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "routing": "routing_fn",
}
FIRST_LAYERS = LAYERS | {"depthwise_norm": "bn1", "project": "conv_pw", "project_norm": "bn2"}
OUTSIDE = {"stem": "conv_stem", "stem_norm": "bn1", "head": "conv_head", "head_norm": "bn2", "logits": "classifier"}


def timm_name(path, first_of_stage=FIRST_OF_STAGE):
    layer, leaf = path.split("/")
    leaf = NORM[leaf] if layer.endswith("norm") else {"kernel": "weight", "bias": "bias"}[leaf]
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{leaf}"
    _, number, kind = layer.split("_", 2)
    stage = max(stage for stage, first in first_of_stage.items() if first <= int(number))
    names = LAYERS if int(number) else FIRST_LAYERS
    return f"blocks.{stage}.{int(number) - first_of_stage[stage]}.{names[kind]}.{leaf}"


def pytorch_layout(path, value):
    """Ours to timm's: `[h, w, in, out]` -> `[out, in, h, w]`, depthwise `[c, 1, h, w]`, each expert flattened so."""
    axes = (2, 3, 0, 1) if "depthwise/" in path else (3, 2, 0, 1)
    if value.ndim == 5:
        return np.stack([expert.transpose(axes).ravel() for expert in value])
    return value.transpose(axes) if value.ndim == 4 else value.T if value.ndim == 2 else value


ORDER = {"expand": 0, "depthwise": 1, "project": 2}


def official_name(path, *, conditional=False):
    """Ours to the names of the published checkpoints."""
    layer, leaf = path.split("/")
    if not layer.startswith("block_"):
        part, kind = {
            "stem": ("stem", "conv2d"),
            "stem_norm": ("stem", "tpu_batch_normalization"),
            "head": ("head", "conv2d"),
            "head_norm": ("head", "tpu_batch_normalization"),
            "logits": ("head", "dense"),
        }[layer]
        return f"narrow/{part}/{kind}/{leaf}"
    _, number, kind = layer.split("_", 2)
    skipped = 0 if int(number) else 1  # the first block has no expansion
    if kind == "routing":
        return f"narrow/blocks_{number}/dense/{leaf}"
    if kind.startswith("se_"):
        return f"narrow/blocks_{number}/se/conv2d{'' if kind == 'se_reduce' else '_1'}/{leaf}"
    if kind.endswith("_norm"):
        position = ORDER[kind.removesuffix("_norm")] - skipped
        return f"narrow/blocks_{number}/tpu_batch_normalization_{position}/{leaf}"
    before, leaf = ("cond_", "condconv_kernel") if conditional else ("", "kernel")
    if kind == "depthwise":
        return f"narrow/blocks_{number}/depthwise_{before}conv2d/depthwise_{leaf}"
    return f"narrow/blocks_{number}/{before}conv2d_{ORDER[kind] // 2}/{leaf}"


def official_tensors(network):
    """A network's weights as a published checkpoint has them: experts are flattened."""
    values = {official_name(v.path, conditional=len(v.shape) == 5): np.array(v) for v in network.weights}
    assert len(values) == len(network.weights)
    return {name: v.reshape(len(v), -1) if v.ndim == 5 else v for name, v in values.items()}


def timm_tensors(network):
    """The weights of a network of the narrow family as a state dict of timm has them."""
    values = {
        timm_name(v.path, narrow_family.FIRST_OF_STAGE): pytorch_layout(v.path, np.array(v)) for v in network.weights
    }
    return {name: np.ascontiguousarray(value) for name, value in values.items()}
