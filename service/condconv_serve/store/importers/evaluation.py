"""How an imported network's photos are prepared: by option, by what the source says, or by what such networks took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import ValidationError

from condconv_serve.domain import Interpolation, TransformName
from condconv_serve.domain.manifest import PreprocessingSpec
from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.source_config import SourceConfig, crop_padding
from condconv_serve.validation import describe_errors

Channels = tuple[float, float, float]
Naming = Literal["official", "timm", "keras"]

# What the networks were trained with, on the scale 0..255: EfficientNet with the mean and deviation of ImageNet's
# pixels, all others with round numbers, which timm has rounded differently.
_IMAGENET: tuple[Channels, Channels] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_TIMM: tuple[Channels, Channels] = ((127.5,) * 3, (127.5,) * 3)
_OFFICIAL: tuple[Channels, Channels] = ((127.0,) * 3, (128.0,) * 3)
_CROP_PADDING = 32
_WHOSE: dict[Naming, str] = {"timm": "timm's", "official": "the official", "keras": "Keras's"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for; None where nothing was. `given_by` says by whom, for people."""

    transform: TransformName | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    mean: Channels | None = None
    std: Channels | None = None
    exact_decoding: bool = True
    given_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is known of the network: whose names its weights bore, whether such networks took ImageNet's mean, its size.

    `image_size` is that of the architecture.
    """

    naming: Naming
    imagenet_pixels: bool
    image_size: int


@dataclass(slots=True)
class Origins:
    """Where values come from, and which of them the source didn't say."""

    of: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def note(self, what: str, where: str, *, assumed: bool = False) -> None:
        """Note where a value comes from."""
        self.of[what] = where
        if assumed:
            self.assumed.append(what)


def choose_preprocessing(
    wishes: Wishes, config: SourceConfig | None, network: Network, origins: Origins
) -> PreprocessingSpec:
    """Choose each value, and note where it comes from.

    Raises:
        ImportFailed: a value can't be, or the source was evaluated in a way that isn't known here.
    """
    chooser = _Chooser(wishes, config or SourceConfig(origin="the source"), origins)
    timm = network.naming == "timm"
    usual = f"usual with {_WHOSE[network.naming]} names"
    mean, std = _IMAGENET if network.imagenet_pixels else _TIMM if timm else _OFFICIAL
    transform: TransformName = chooser.choose(
        "transform",
        wishes.transform,
        None,
        "pillow" if timm else "official",
        why="timm evaluates with Pillow" if timm else "the official evaluation",
        assumed=network.naming != "official" and config is None,
    )
    size = chooser.choose(
        "image_size", wishes.image_size, chooser.config.image_size, network.image_size, why="the architecture"
    )
    values = {
        "transform": transform,
        "image_size": size,
        "crop_padding": chooser.crop_padding(size, sure=transform == "official" and network.naming == "official"),
        "interpolation": chooser.interpolation(transform),
        "mean": chooser.choose("mean", wishes.mean, chooser.config.mean, mean, why=usual, assumed=True),
        "std": chooser.choose("std", wishes.std, chooser.config.std, std, why=usual, assumed=True),
        "exact_decoding": wishes.exact_decoding,
    }
    try:
        return PreprocessingSpec.model_validate(values)
    except ValidationError as error:
        field = bool(error.errors()[0]["loc"])
        described = describe_errors(
            error, most=1, write_place=lambda place: str(*place[:1]), whole="preprocessing", show_values=field
        )
        raise ImportFailed(f"{described}.") from error


@dataclass(frozen=True, slots=True)
class _Chooser:
    """Takes what was asked for, else what the source says, else what is usual, and notes which."""

    wishes: Wishes
    config: SourceConfig
    origins: Origins

    def choose(self, what: str, wish: Any, said: Any, usual: Any, *, why: str, assumed: bool = False) -> Any:
        if wish is not None:
            self.origins.note(what, self.wishes.given_by)
            return wish
        if said is not None:
            self.origins.note(what, self.config.origin)
            return said
        self.origins.note(what, why, assumed=assumed)
        return usual

    def crop_padding(self, size: int, *, sure: bool) -> int:
        wish, config = self.wishes.crop_pct, self.config
        if wish is None and config.crop_mode not in (None, "center"):
            raise ImportFailed(
                f"{config.origin} says that photos are cropped by {config.crop_mode!r}; here the centre is cut out. "
                "Give --crop 0.875 or the like to do so all the same."
            )
        said = None if config.crop_pct is None else crop_padding(size, config.crop_pct)
        found: int = self.choose(
            "crop_padding",
            None if wish is None else crop_padding(size, wish),
            said,
            _CROP_PADDING,
            why=f"{size} of {size + _CROP_PADDING} pixels",
            assumed=not sure,
        )
        if found < 0:
            raise ImportFailed(
                f"A crop is a share of the short side, above 0 and at most 1, not {size / (size + found):g}. Choose "
                "with --crop."
            )
        return found

    def interpolation(self, transform: TransformName) -> str:
        official = transform == "official"
        said = None if official else self.config.interpolation
        found: str = self.choose(
            "interpolation",
            self.wishes.interpolation,
            said,
            "bicubic",
            why="the official evaluation" if official else "usual",
            assumed=not official,
        )
        if found not in get_args(Interpolation):
            raise ImportFailed(
                f"{self.config.origin} says that photos are resized by {found!r}; here it is one of "
                f"{', '.join(get_args(Interpolation))}. Choose with --interpolation."
            )
        return found
