"""What a manifest may say of the pixels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from condconv_serve.domain import Preprocessing
from condconv_serve.domain.manifest import PreprocessingSpec

COMMON: dict[str, Any] = {"image_size": 64, "mean": (127.0,) * 3, "std": (128.0,) * 3}


@pytest.mark.parametrize(
    ("transform", "crop", "share"),
    [
        ("official", {"crop_padding": 32}, 64 / 96),
        ("pillow", {"crop_padding": 32}, 64 / 96),
        ("central", {"crop_fraction": 0.875}, 0.875),
        ("stretch", {}, 1),
        ("letterbox", {}, 1),
    ],
)
def test_each_transform_has_its_own_crop(transform: Any, crop: dict[str, Any], share: float) -> None:
    spec = PreprocessingSpec(transform=transform, **COMMON)
    said = spec.model_dump(exclude_none=True)
    assert {name: said[name] for name in said if name.startswith("crop")} == crop
    assert spec.to_domain().crop_share == Preprocessing(transform=transform, image_size=64).crop_share == share
    assert PreprocessingSpec(**asdict(spec.to_domain())) == spec
    assert PreprocessingSpec(**asdict(Preprocessing(transform=transform, **COMMON))) == spec


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"transform": "central", "crop_padding": 32},
            "crop_padding says nothing to the transform central, which takes",
        ),
        ({"transform": "pillow", "crop_fraction": 0.5}, "crop_fraction says nothing to the transform pillow"),
        ({"transform": "stretch", "crop_padding": 0}, "transform stretch, which takes the whole photo"),
        ({"transform": "letterbox", "crop_fraction": 1.0}, "transform letterbox, which takes the whole photo"),
        ({"transform": "official", "interpolation": "bilinear"}, "the official transform is bicubic"),
        *(
            (
                {"transform": name, "interpolation": "asymmetric"},
                f"is for the transforms stretch and letterbox, not {name}",
            )
            for name in ("pillow", "central")
        ),
        ({"transform": ["stretch"]}, "transform"),
        ({}, "transform"),
    ],
)
def test_what_says_nothing_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PreprocessingSpec(**COMMON, **given)


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ({"transform": "official"}, np.float32),
        ({"transform": "letterbox", "interpolation": "asymmetric"}, np.float32),
        ({"transform": "letterbox"}, np.uint8),
        ({"transform": "pillow"}, np.uint8),
    ],
)
def test_row_type(given: dict[str, Any], exact: type) -> None:
    assert Preprocessing(image_size=64, exact_decoding=True, **given).row_type is exact
    assert Preprocessing(image_size=64, **given).row_type is np.uint8
