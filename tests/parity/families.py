"""Networks of other families that reference outputs exist for, with weights that follow from names.

A golden is a pair `X.json` and `X.npz`. `variables` in the JSON file gives the shape of each published variable, and
how its numbers are made. The small ones lie here; `../shared/families` has those of full size.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.golden import FAMILIES

DATA = Path(__file__).parent / "data" / "families"
Weights = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class FamilyGolden:
    """One of them: its file, and how it is imported."""

    key: str
    architecture: str
    overrides: dict[str, Any] = field(default_factory=dict)
    directory: Path = DATA

    def __str__(self) -> str:
        return self.key.split("/")[-1]

    @cached_property
    def spec(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.directory / f"{self.key}.json").read_text())
        return document

    @cached_property
    def stored(self) -> Weights:
        with np.load(self.directory / f"{self.key}.npz") as stored:
            return dict(stored)

    def weights(self) -> Weights:
        """Every published variable, in order. Their fingerprint shows if the numbers come out otherwise here."""
        found: Weights = {}
        for name, (shape, *rule) in self.spec["variables"].items():
            if rule == ["stat"]:
                found[name] = self.stored[f"stat:{name}"].astype(np.float32).reshape(shape)
            elif rule == ["zero"]:
                found[name] = np.zeros(shape, np.int64)
            else:
                found[name] = _seeded(f"{self.spec['salt']}:{name}", shape, *rule)
        digest = hashlib.sha256()
        for name, value in found.items():
            digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
        assert digest.hexdigest() == self.spec["weights_sha256"]
        return found

    def write(self, directory: Path) -> Path:
        """Write its weights as they are published: HDF5 in Keras 2's layout, or safetensors."""
        weights = self.weights()
        if "layers" not in self.spec:
            save_file(weights, directory / f"{self}.safetensors")
            return directory / f"{self}.safetensors"
        with h5py.File(directory / f"{self}.h5", "w") as file:
            file.attrs["layer_names"] = np.asarray([layer.encode() for layer in self.spec["layers"]])
            for layer, names in self.spec["layers"].items():
                group = file.create_group(layer)
                group.attrs["weight_names"] = np.asarray([name.encode() for name in names])
                for name in names:
                    group.create_dataset(name, data=weights[name])
        return directory / f"{self}.h5"


def _seeded(seed: str, shape: list[int], mean: float, std: float, low: float | None = None) -> NDArray[np.float32]:
    random = np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode())))
    value = mean + std * random.standard_normal(shape)
    return np.asarray(value if low is None else np.maximum(value, low), np.float32)


def pixels_of(size: int) -> NDArray[np.float32]:
    """The photographs behind the golden numbers, `[4, size, size, 3]` in 0..255."""
    with np.load(FAMILIES / "pixels.npz") as photographs:
        return photographs[f"pixels_{size}"].astype(np.float32)


TINY = (
    FamilyGolden("keras_mobilenet_v1_025_96_tiny", "mobilenet-v1", {"width_coefficient": 0.25}),
    FamilyGolden("keras_mobilenet_v2_035_96_tiny", "mobilenet-v2", {"width_coefficient": 0.35}),
    FamilyGolden("timm_semnasnet_050_96_tiny", "mnasnet-a1", {"width_coefficient": 0.5}),
    FamilyGolden(
        "mobilenet_v1_025_condconv_4e_96_tiny",
        "condconv-mobilenet-v1-8e",
        {"width_coefficient": 0.25, "num_experts": 4},
    ),
    FamilyGolden(
        "mobilenet_v2_035_condconv_4e_96_tiny",
        "condconv-mobilenet-v2-8e",
        {"width_coefficient": 0.35, "num_experts": 4},
    ),
    FamilyGolden(
        "mnasnet_a1_050_condconv_4e_96_tiny", "condconv-mnasnet-a1-8e", {"width_coefficient": 0.5, "num_experts": 4}
    ),
    FamilyGolden(
        "resnet50_0125_condconv_4e_96_tiny", "condconv-resnet-50-8e", {"width_coefficient": 0.125, "num_experts": 4}
    ),
)
FULL_SIZE = (
    FamilyGolden("static/keras_mobilenet_v1_050_160", "mobilenet-v1", {"width_coefficient": 0.5}, FAMILIES),
    FamilyGolden("static/keras_mobilenet_v1_100_224", "mobilenet-v1", {}, FAMILIES),
    FamilyGolden("static/keras_mobilenet_v2_100_224", "mobilenet-v2", {}, FAMILIES),
    FamilyGolden("static/keras_resnet50_224", "resnet-50", {}, FAMILIES),
    FamilyGolden("static/timm_mobilenetv2_100", "mobilenet-v2", {}, FAMILIES),
    FamilyGolden("static/timm_semnasnet_100", "mnasnet-a1", {}, FAMILIES),
    FamilyGolden("static/timm_resnet50", "resnet-50", {}, FAMILIES),
    FamilyGolden("static/timm_tf_efficientnet_b0", "efficientnet-b0", {}, FAMILIES),
    FamilyGolden("condconv/mobilenet_v1_100_condconv_8e", "condconv-mobilenet-v1-8e", {}, FAMILIES),
    FamilyGolden("condconv/mobilenet_v2_100_condconv_8e", "condconv-mobilenet-v2-8e", {}, FAMILIES),
)
