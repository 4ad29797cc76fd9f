"""How an imported network's photos are prepared: by option, by what the source says, or by what such networks took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import ValidationError

from condconv_serve.domain import Interpolation, TransformName
from condconv_serve.domain.manifest import PreprocessingSpec
from condconv_serve.errors import ImportFailed
from condconv_serve.nn.published import IMAGENET, SYMMETRIC, Channels, Published
from condconv_serve.store.importers.source_config import SourceConfig, crop_padding
from condconv_serve.validation import describe_errors

Naming = Literal["official", "timm", "keras"]

# What EfficientNets were trained with, on the scale 0..255: with the mean and deviation of ImageNet's pixels, or, as
# CondConv and Lite, with round numbers, which timm has rounded differently.
_OFFICIAL: tuple[Channels, Channels] = ((127.0,) * 3, (128.0,) * 3)
_CROP_PADDING = 32
_CROP_SHARE = 0.875
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
class Usual:
    """How such networks are evaluated, where nobody says otherwise.

    Attributes:
        whose: names the weights bear.
        transform: how photos are resized.
        because: why that.
        transform_known: whether nothing else can be.
        crop_known: whether no other crop can be.
        crop_share: of the short side; None: `image_size / (image_size + 32)`.
        interpolation: by which filter.
        pixels: mean and deviation.
        image_size: of the architecture.
    """

    whose: str
    transform: TransformName
    because: str
    transform_known: bool = False
    crop_known: bool = False
    crop_share: float | None = None
    interpolation: Interpolation = "bicubic"
    pixels: tuple[Channels, Channels]
    image_size: int


def usual_efficientnet(naming: Naming, *, imagenet_pixels: bool, image_size: int, configured: bool) -> Usual:
    """How EfficientNets are evaluated.

    Args:
        naming: whose names their weights bear.
        imagenet_pixels: whether they took ImageNet's mean and deviation.
        image_size: of the architecture.
        configured: whether the source says anything of itself.
    """
    timm = naming == "timm"
    return Usual(
        whose=_WHOSE[naming],
        transform="pillow" if timm else "official",
        because="timm evaluates with Pillow" if timm else "the official evaluation",
        transform_known=naming == "official" or configured,
        crop_known=naming == "official",
        pixels=IMAGENET if imagenet_pixels else SYMMETRIC if timm else _OFFICIAL,
        image_size=image_size,
    )


def usual_published(published: Published, *, image_size: int) -> Usual:
    """How networks are evaluated whose weights bear such names."""
    return Usual(
        whose=published.whose,
        transform=published.transform,
        because=f"usual with {published.whose} names",
        crop_share=_CROP_SHARE,
        interpolation=published.interpolation,
        pixels=published.pixels,
        image_size=image_size,
    )


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
    wishes: Wishes, config: SourceConfig | None, usual: Usual, origins: Origins
) -> PreprocessingSpec:
    """Choose each value, and note where it comes from.

    Raises:
        ImportFailed: a value can't be, or the source was evaluated in a way that isn't known here.
    """
    chooser = _Chooser(wishes, config or SourceConfig(origin="the source"), origins)
    why = f"usual with {usual.whose} names"
    transform: TransformName = chooser.choose(
        "transform", wishes.transform, None, usual.transform, why=usual.because, assumed=not usual.transform_known
    )
    size = chooser.choose(
        "image_size", wishes.image_size, chooser.config.image_size, usual.image_size, why="the architecture"
    )
    mean, std = usual.pixels
    values = {
        "transform": transform,
        "image_size": size,
        **chooser.crop(transform, size, usual),
        "interpolation": chooser.interpolation(transform, usual.interpolation),
        "mean": chooser.choose("mean", wishes.mean, chooser.config.mean, mean, why=why, assumed=True),
        "std": chooser.choose("std", wishes.std, chooser.config.std, std, why=why, assumed=True),
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

    def crop(self, transform: TransformName, size: int, usual: Usual) -> dict[str, int | float]:
        wish, config = self.wishes.crop_pct, self.config
        if transform in ("stretch", "letterbox"):
            if wish is not None:
                raise ImportFailed(f"The transform {transform} takes the whole photo: leave --crop away.")
            return {}
        if wish is None and config.crop_mode not in (None, "center"):
            raise ImportFailed(
                f"{config.origin} says that photos are cropped by {config.crop_mode!r}; here the centre is cut out. "
                "Give --crop 0.875 or the like to do so all the same."
            )
        assumed = not (transform == "official" and usual.crop_known)
        if transform == "central":
            share = usual.crop_share or _CROP_SHARE
            fraction: float = self.choose(
                "crop_fraction", wish, config.crop_pct, share, why=f"usual with {usual.whose} names", assumed=assumed
            )
            if not 0 < fraction <= 1:
                raise _impossible_crop(fraction)
            return {"crop_fraction": fraction}
        said = None if config.crop_pct is None else crop_padding(size, config.crop_pct)
        padding = _CROP_PADDING if usual.crop_share is None else crop_padding(size, usual.crop_share)
        found: int = self.choose(
            "crop_padding",
            None if wish is None else crop_padding(size, wish),
            said,
            padding,
            why=f"{size} of {size + padding} pixels",
            assumed=assumed,
        )
        if found < 0:
            raise _impossible_crop(size / (size + found))
        return {"crop_padding": found}

    def interpolation(self, transform: TransformName, usual: Interpolation) -> str:
        official = transform == "official"
        said = None if official else self.config.interpolation
        found: str = self.choose(
            "interpolation",
            self.wishes.interpolation,
            said,
            "bicubic" if official else usual,
            why="the official evaluation" if official else "usual",
            assumed=not official,
        )
        if found not in get_args(Interpolation):
            raise ImportFailed(
                f"{self.config.origin} says that photos are resized by {found!r}; here it is one of "
                f"{', '.join(get_args(Interpolation))}. Choose with --interpolation."
            )
        return found


def _impossible_crop(share: float) -> ImportFailed:
    return ImportFailed(
        f"A crop is a share of the short side, above 0 and at most 1, not {share:g}. Choose with --crop."
    )
