"""The models that reference outputs exist for, and files with their weights as their authors publish them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.golden import GOLDEN
from tests.parity.seeded import official_tensors, timm_tensors


@dataclass(frozen=True)
class GoldenModel:
    """One of them: what it is called there, and how it is imported."""

    key: str
    architecture: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.key.split("/")[1].replace("_", "-")

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Its description, and outputs with measured statistics."""
        with np.load(GOLDEN / f"{self.key}.npz") as stored:
            return json.loads((GOLDEN / f"{self.key}.json").read_text()), dict(stored)

    def write(self, directory: Path) -> Path:
        """Write its weights: a `.tar.gz` of a TensorFlow checkpoint, or a `.safetensors` file."""
        spec, stored = self.read()
        statistics = {name.removeprefix("stat:"): value for name, value in stored.items() if name.startswith("stat:")}
        if "variables" in spec:
            tensors = official_tensors(spec, statistics) | {"global_step": np.asarray(437_600, np.int64)}
            return write_archive(write_checkpoint(tensors, directory / self.name / "model.ckpt"))
        file = directory / f"{self.name}.safetensors"
        save_file({name: np.ascontiguousarray(value) for name, value in timm_tensors(spec, statistics).items()}, file)
        return file


TINY = GoldenModel(
    "official/efficientnet-condconv-b0-4e-tiny",
    "efficientnet-condconv-b0-4e",
    ("--override", "width_coefficient=0.25"),
)
# timm's answers there are to the pixels of the official transform, too.
OFFICIAL_PIXELS = ("--transform", "official")
FULL_SIZE = (
    GoldenModel("official/efficientnet-condconv-b0-4e", "efficientnet-condconv-b0-4e"),
    GoldenModel("official/efficientnet-condconv-b0-8e", "efficientnet-condconv-b0-8e"),
    GoldenModel("official/efficientnet-condconv-b0-8e-depth", "efficientnet-condconv-b0-8e-depth"),
    GoldenModel("timm/tf_efficientnet_cc_b0_4e", "efficientnet-condconv-b0-4e", OFFICIAL_PIXELS),
    GoldenModel("timm/tf_efficientnet_cc_b0_8e", "efficientnet-condconv-b0-8e", OFFICIAL_PIXELS),
    GoldenModel("timm/tf_efficientnet_cc_b1_8e", "efficientnet-condconv-b0-8e-depth", OFFICIAL_PIXELS),
)


def write_checkpoint(tensors: Mapping[str, np.ndarray], prefix: Path) -> Path:
    """Write a TensorFlow 1 checkpoint and return its prefix."""
    import tensorflow as tf

    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    (prefix.parent / "checkpoint").write_text(f'model_checkpoint_path: "{prefix.name}"\n')
    return prefix


def write_archive(prefix: Path) -> Path:
    """Pack a checkpoint's directory as published ones are packed."""
    directory = prefix.parent
    archive = directory.parent / f"{directory.name}.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(directory, arcname=directory.name)
    return archive


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
