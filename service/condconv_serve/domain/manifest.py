"""The manifest of a bundle: the fields of `manifest.json`, each of them checked."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from condconv_serve.domain.images import (
    USUAL_CROP_FRACTION,
    USUAL_CROP_PADDING,
    Interpolation,
    Preprocessing,
    TransformName,
)

SCHEMA_VERSION: Final = 1
OWN_NETWORK: Final = "keras"
"""Architecture of a bundle with its own network, described in `network.json`."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
VersionName = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
FileName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(weights\.safetensors|labels\.json|MODEL_CARD\.md|network\.json"
        r"|routing_profile\.[0-9a-f]{16}\.safetensors)$"
    ),
]
WeightsKind = Literal["averaged", "raw", "unmarked"]
"""Averages over training (EMA), the weights of the last step, or the only ones of a source that doesn't say which."""
TaskName = Literal["classification", "detection"]
"""What a network's outputs mean: one class per image, or boxes with a class each."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Level = Annotated[float, Field(ge=0, le=255, allow_inf_nan=False)]
Deviation = Annotated[float, Field(ge=1e-3, le=1e6, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ArchitectureSpec(BaseModel):
    """Name of a registered architecture, and the parameters that differ from it; or just the name `keras`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def overrides(self) -> dict[str, Any]:
        """The parameters that differ from the registered ones."""
        return dict(self.model_extra or {})


class PreprocessingSpec(_Strict):
    """See `condconv_serve.domain.Preprocessing`."""

    transform: TransformName
    image_size: Annotated[int, Field(ge=32, le=2048)]
    crop_padding: Annotated[int, Field(ge=0, le=2048)] | None = None
    crop_fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    interpolation: Interpolation = "bicubic"
    mean: tuple[Level, Level, Level]
    std: tuple[Deviation, Deviation, Deviation]
    exact_decoding: bool = False

    @model_validator(mode="after")
    def _official_is_bicubic(self) -> PreprocessingSpec:
        if self.transform == "official" and self.interpolation != "bicubic":
            raise ValueError(f"the official transform is bicubic, not {self.interpolation}; pillow can be")
        return self

    @model_validator(mode="after")
    def _whole_photos_can_be_asymmetric(self) -> PreprocessingSpec:
        if self.interpolation == "asymmetric" and self.transform not in ("stretch", "letterbox"):
            raise ValueError(
                f"the interpolation asymmetric is for the transforms stretch and letterbox, not {self.transform}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _say_the_usual_crop(cls, values: Any) -> Any:
        """A manifest says which crop its transform takes, and nothing of crops that it doesn't."""
        match values:
            case {"transform": "official" | "pillow"} if values.get("crop_padding") is None:
                return {**values, "crop_padding": USUAL_CROP_PADDING}
            case {"transform": "central"} if values.get("crop_fraction") is None:
                return {**values, "crop_fraction": USUAL_CROP_FRACTION}
        return values

    @model_validator(mode="after")
    def _crops_are_the_transforms_own(self) -> PreprocessingSpec:
        takes = "crop_fraction" if self.transform == "central" else "crop_padding"
        if self.transform in ("stretch", "letterbox"):
            takes = "the whole photo"
        for name in ("crop_padding", "crop_fraction"):
            if getattr(self, name) is not None and name != takes:
                raise ValueError(f"{name} says nothing to the transform {self.transform}, which takes {takes}")
        return self

    def to_domain(self) -> Preprocessing:
        """Return the value that imaging and the inference graph take."""
        return Preprocessing(**self.model_dump())


class FileSpec(_Strict):
    """Size and checksum of one file of the bundle."""

    size: Annotated[int, Field(ge=0, le=16 * 2**30)]
    sha256: Sha256


class Accuracy(_Strict):
    """One measurement on `images` labelled images, as shares in 0..1.

    Attributes:
        dataset: which images these are.
        images: how many.
        transform: how they became rows.
        top1: of a classifier: right answers.
        top5: of a classifier: right classes among its first five answers.
        ap: of a detector: COCO's average precision.
        ap50: of a detector: average precision where boxes need overlap objects by half.
        note: what else there is to know.
    """

    dataset: str
    images: Annotated[int, Field(ge=1)]
    transform: TransformName
    top1: Annotated[float, Field(ge=0, le=1)] | None = None
    top5: Annotated[float, Field(ge=0, le=1)] | None = None
    ap: Annotated[float, Field(ge=0, le=1)] | None = None
    ap50: Annotated[float, Field(ge=0, le=1)] | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _something_was_measured(self) -> Accuracy:
        if self.top1 is None and self.ap is None:
            raise ValueError("an accuracy has top1, or a detector's ap")
        return self


class Provenance(_Strict):
    """Where the weights come from.

    Attributes:
        source: the file or bundle that they come from.
        method: how they were made.
        url: where they were published.
        source_sha256: of the source.
        weights: which of the source's weights these are.
        origins: where other values of the manifest come from, by name: a file, an option, a convention.
        assumed: those of `origins` that the source doesn't say.
    """

    source: str
    method: str
    url: str | None = None
    source_sha256: Sha256 | None = None
    weights: WeightsKind | None = None
    origins: dict[str, str] | None = None
    assumed: tuple[str, ...] | None = None


class Manifest(_Strict):
    """`manifest.json`. Unknown fields are refused, so a newer bundle is never half understood."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: TaskName = "classification"
    name: ModelName
    version: VersionName
    architecture: ArchitectureSpec
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)]
    preprocessing: PreprocessingSpec
    files: dict[FileName, FileSpec]
    provenance: Provenance
    licence: str
    accuracy: tuple[Accuracy, ...] = ()

    @property
    def routing_profile(self) -> str | None:
        """The file with the reference routing profile; None if there is none."""
        return next((name for name in self.files if name.startswith("routing_profile.")), None)
