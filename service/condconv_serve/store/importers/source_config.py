"""What a source says of itself: timm's `config.json`, the same in safetensors metadata, or a checkpoint's arguments.

timm writes `pretrained_cfg` into an object with `architecture` and the labels; older files have all of it in one flat
object. It evaluates with what stands there, and with its own defaults for what doesn't.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from condconv_serve.domain import Label
from condconv_serve.errors import ImportFailed
from condconv_serve.files import FileTooLarge, read_limited
from condconv_serve.validation import first_message

CONFIG: Final = "config.json"
_MAX_BYTES = 64 * 2**20
_SYNSET = re.compile(r"^n\d{8}$")
_NESTED = "pretrained_cfg"
# What timm takes if a configuration doesn't say.
_TIMM_DEFAULTS = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Scale = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
_Channels = tuple[float, float, float]


class _Fields(BaseModel):
    """The fields that count; others are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=False)

    input_size: tuple[int, int, int] | None = None
    test_input_size: tuple[int, int, int] | None = None
    mean: Annotated[tuple[_Share, ...], Field(min_length=1, max_length=3)] | _Share | None = None
    std: Annotated[tuple[_Scale, ...], Field(min_length=1, max_length=3)] | _Scale | None = None
    interpolation: str | None = None
    crop_pct: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    test_crop_pct: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    crop_mode: str | None = None
    tag: str | None = None
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """What a source says of how its weights were trained and evaluated; None where it says nothing.

    Attributes:
        origin: where it says so, for people.
        architecture: timm's name of the network.
        image_size: pixels per side.
        mean: of the pixels, on the scale 0..255.
        std: of the pixels, on the scale 0..255.
        interpolation: how photos are resized.
        crop_pct: the centre crop, as a share of the short side.
        crop_mode: `center`, or another way in which timm crops.
        labels: the classes.
        imagenet: whether the classes are those of ImageNet-1k.
    """

    origin: str
    architecture: str | None = None
    image_size: int | None = None
    mean: _Channels | None = None
    std: _Channels | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    labels: tuple[Label, ...] | None = None
    imagenet: bool = False


def read_config(weights: Path) -> SourceConfig | None:
    """Read timm's `config.json` beside a file of weights; None if there is none, or it is of another program.

    Raises:
        ImportFailed: it can't be read, or a value in it can't be.
    """
    file = weights.with_name(CONFIG)
    if not file.is_file():
        return None
    try:
        document = json.loads(read_limited(file, _MAX_BYTES))
    except (OSError, ValueError, RecursionError, FileTooLarge) as error:
        raise ImportFailed(
            f"{CONFIG}, which lies beside {weights.name}, can't be read as JSON. Repair it or move it away."
        ) from error
    return parse_config(document, origin=CONFIG) if isinstance(document, Mapping) else None


def config_from_metadata(metadata: Mapping[str, str] | None, *, origin: str) -> SourceConfig | None:
    """The same from the metadata of a safetensors file, whose values are texts: of JSON, or plain ones.

    Raises:
        ImportFailed: a value can't be.
    """
    document: dict[str, Any] = {}
    for key, text in (metadata or {}).items():
        try:
            document[key] = json.loads(text)
        except (ValueError, RecursionError):
            document[key] = text
    for key in ("config", CONFIG, "model_config", "timm_config"):
        if isinstance(document.get(key), Mapping):
            return parse_config(document[key], origin=origin)
    return parse_config(document, origin=origin)


def config_from_arguments(checkpoint: Mapping[Any, Any], *, origin: str) -> SourceConfig | None:
    """What the arguments in a checkpoint of timm's training script say; those that aren't set say nothing."""
    given = checkpoint.get("args")
    found = vars(given) if isinstance(given, argparse.Namespace) else given if isinstance(given, Mapping) else {}
    arguments = {key: value for key, value in found.items() if value not in (None, "")}
    size = arguments.pop("img_size", None)
    document = {
        "architecture": checkpoint.get("arch") or arguments.get("model"),
        **({"input_size": (3, size, size)} if size is not None else {}),
        **{key: arguments[key] for key in _Fields.model_fields if key in arguments},
    }
    return parse_config(document, origin=origin, defaults=False)


def parse_config(document: Mapping[str, Any], *, origin: str, defaults: bool = True) -> SourceConfig | None:
    """Take what counts out of timm's configuration, in the new layout or the old one.

    Args:
        document: what was in the file.
        origin: where it was, for people.
        defaults: whether timm's own defaults stand for what a whole configuration leaves out.

    Returns:
        None if it says nothing of a network or its labels.

    Raises:
        ImportFailed: a value can't be.
    """
    inner = document.get(_NESTED)
    merged = {**inner, **document} if isinstance(inner, Mapping) else dict(document)
    # Old files call them so. What stands outside of pretrained_cfg counts for labels only, as in timm.
    if "labels" in merged and "label_names" not in merged:
        merged["label_names"] = merged["labels"]
    if isinstance(inner, Mapping):
        merged |= {key: value for key, value in inner.items() if not key.startswith("label_")}
    known = {key: merged[key] for key in _Fields.model_fields if merged.get(key) is not None}
    architecture = document.get("architecture") or merged.get("architecture")
    if not known and not isinstance(architecture, str):
        return None
    if defaults and "input_size" in known:
        known = _TIMM_DEFAULTS | known
    try:
        fields = _Fields.model_validate(known)
    except ValidationError as error:
        place = error.errors()[0]["loc"][0]
        raise ImportFailed(f"{origin}: {place} can't be used: {first_message(error)}.") from error
    return replace(
        _evaluation(fields, origin),
        architecture=architecture if isinstance(architecture, str) else None,
        labels=_labels(fields),
        imagenet=bool(fields.tag and re.search(r"(^|_)in1k$", fields.tag)),
    )


def check_architecture(config: SourceConfig) -> None:
    """Check that the source's network pads and normalises as ours does.

    Raises:
        ImportFailed: it is one of timm's networks that only look alike.
    """
    name = (config.architecture or "").removeprefix("timm/")
    if name.startswith(("efficientnet_", "efficientnetv2_")):
        raise ImportFailed(
            f"{config.origin} says that the weights are of timm's {name}. It pads symmetrically and has a batch norm "
            "epsilon of 1e-5. Networks here pad as TensorFlow does and have 1e-3, so the answers would be wrong. "
            f"timm's networks with the prefix tf_ (tf_{name}, say) can be imported."
        )


def crop_padding(image_size: int, crop_pct: float) -> int:
    """How many pixels more than `image_size` the short side has when timm cuts the centre out of it."""
    return math.floor(image_size / crop_pct) - image_size


def _evaluation(fields: _Fields, origin: str) -> SourceConfig:
    size = fields.test_input_size or fields.input_size
    if size is not None and (size[0] != 3 or size[1] != size[2]):
        raise ImportFailed(f"{origin}: the input is {list(size)}, but networks here take squares of 3 channels.")
    return SourceConfig(
        origin=origin,
        image_size=size[1] if size else None,
        mean=_to_levels(fields.mean),
        std=_to_levels(fields.std),
        interpolation=fields.interpolation,
        crop_pct=fields.test_crop_pct or fields.crop_pct,
        crop_mode=fields.crop_mode,
    )


def _to_levels(values: tuple[float, ...] | float | None) -> _Channels | None:
    """From 0..1 to 0..255; one number stands for all channels."""
    if values is None:
        return None
    numbers = values if isinstance(values, tuple) else (values,)
    red, green, blue = (numbers * 3)[:3] if len(numbers) == 1 else (*numbers, *numbers)[:3]
    return round(255 * red, 6), round(255 * green, 6), round(255 * blue, 6)


def _labels(fields: _Fields) -> tuple[Label, ...] | None:
    if not fields.label_names:
        return None
    said = fields.label_descriptions or {}
    described = dict(zip(fields.label_names, said, strict=False)) if isinstance(said, tuple) else said
    return tuple(
        Label(index, described.get(name, name), name) if _SYNSET.match(name) else Label(index, name)
        for index, name in enumerate(fields.label_names)
    )
