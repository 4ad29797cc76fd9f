"""SSD detectors as data: a backbone of any family, extra layers, predictors, and prior boxes.

Sources: Liu et al., ECCV 2016 (SSD); Howard et al., 2017, section 4.6 (on MobileNetV1); Sandler et al., CVPR 2018,
section 6.2 (SSDLite); the TensorFlow Object Detection API, whose layers and prior boxes these are. With experts: Yang
et al., NeurIPS 2019, section 4.2: the backbone as its family has them, and the extra layers, but not the predictors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.families import Architecture, family_of, get_architecture
from condconv_serve.nn.families import to_manifest as as_manifest
from condconv_serve.nn.spec import check_overrides
from condconv_serve.nn.ssd.coding import VARIANCES, ScoreName, Variances
from condconv_serve.nn.ssd.parameters import ExtraArgs, HeadName, plain_value, read_parameter
from condconv_serve.nn.ssd.priors import MapShapes, prior_shapes

MAX_MAPS = 12
EXTRAS = (ExtraArgs(256, 512), ExtraArgs(128, 256), ExtraArgs(128, 256), ExtraArgs(64, 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class SSDSpec:
    """A detector without its weights.

    Attributes:
        name: under which it is registered.
        backbone: a classifier's architecture; its layers after the last tap are left out.
        image_size: pixels per side of the input.
        num_classes: number of classes, without the background.
        taps: the backbone's maps that boxes are predicted from, from fine to coarse: `stride_8`, `stride_16`,
            `stride_32`, or names of layers. The extra blocks follow the last one.
        extras: the extra blocks.
        extra_norm: whether their convolutions have batch norms; otherwise they have biases.
        condconv_extras: whether they have experts, as many as the backbone.
        head: which convolutions predict.
        head_kernel: 1 or 3, the size of the predictors' convolutions; of `ssdlite` always 3.
        prior_boxes: scale and aspect ratio of the shapes of each map.
        variances: what the encodings of boxes are multiplied with.
        scores: how class logits become probabilities.
    """

    name: str
    backbone: Architecture
    image_size: int = 300
    num_classes: int = 90
    taps: tuple[str, ...] = ("stride_16", "stride_32")
    extras: tuple[ExtraArgs, ...] = EXTRAS
    extra_norm: bool = True
    condconv_extras: bool = False
    head: HeadName = "ssd"
    head_kernel: int = 1
    prior_boxes: tuple[MapShapes, ...] = prior_shapes(6)
    variances: Variances = VARIANCES
    scores: ScoreName = "softmax"

    OVERRIDABLE: ClassVar[tuple[str, ...]] = (
        "num_classes",
        "image_size",
        "taps",
        "extras",
        "extra_norm",
        "condconv_extras",
        "head",
        "head_kernel",
        "prior_boxes",
        "variances",
        "scores",
    )
    """Besides these, `backbone` and its own parameters can be changed."""

    @property
    def num_experts(self) -> int:
        """Experts per CondConv layer; 0 in a static network."""
        return self.backbone.num_experts

    @property
    def maps(self) -> int:
        """How many feature maps there are."""
        return len(self.taps) + len(self.extras)

    def static(self) -> SSDSpec:
        """The same network with ordinary layers."""
        return replace(self, backbone=self.backbone.static(), condconv_extras=False)

    def changed(self, **overrides: Any) -> SSDSpec:
        """The same network with some of its parameters changed.

        Args:
            overrides: new values for parameters named in `OVERRIDABLE`, for `backbone` (a registered architecture's
                name), or for parameters of the backbone. Sequences may be lists, as in JSON.

        Raises:
            ConfigurationError: an unknown parameter, or an impossible value.
        """
        own = {key: overrides.pop(key) for key in self.OVERRIDABLE if key in overrides}
        backbone = self.backbone if "backbone" not in overrides else as_backbone(overrides.pop("backbone"))
        if overrides:
            backbone = self._changed_backbone(backbone, overrides)
        check_overrides({key: own[key] for key in ("num_classes", "image_size") if key in own}, self.OVERRIDABLE)
        values = {key: read_parameter(key, value) for key, value in own.items()}
        found = replace(self, backbone=backbone, **values)
        if "prior_boxes" not in own and found.maps != self.maps:
            found = replace(found, prior_boxes=prior_shapes(found.maps))
        found.check()
        return found

    def overrides(self, registered: SSDSpec) -> dict[str, Any]:
        """The parameters in which this differs from the network that is registered under the same name."""
        found = {
            key: plain_value(getattr(self, key))
            for key in self.OVERRIDABLE
            if getattr(self, key) != getattr(registered, key)
        }
        before = registered.backbone
        if self.backbone.name != before.name:
            found["backbone"] = self.backbone.name
            before = get_architecture(self.backbone.name)
        own = self.backbone.overrides(before)
        return found | {key: value for key, value in own.items() if key not in self.OVERRIDABLE}

    def check(self) -> None:
        """Check that its parameters fit each other.

        Raises:
            ConfigurationError: they don't.
        """
        if not 1 <= self.maps <= MAX_MAPS or not self.taps:
            raise ConfigurationError(f"{self.name} needs a tap at least, and at most {MAX_MAPS} maps, not {self.maps}.")
        if len(self.prior_boxes) != self.maps:
            raise ConfigurationError(
                f"Architecture parameter prior_boxes must have shapes for {self.maps} maps (taps and extra blocks), "
                f"not for {len(self.prior_boxes)}."
            )
        if self.condconv_extras and not self.num_experts:
            raise ConfigurationError(
                f"condconv_extras needs a backbone with experts, and {self.backbone.name} has none."
            )

    def _changed_backbone(self, backbone: Architecture, overrides: Mapping[str, Any]) -> Architecture:
        try:
            return backbone.changed(**overrides)
        except ConfigurationError as error:
            if "Unknown architecture parameter" not in str(error):
                raise
            known = ("backbone", *self.OVERRIDABLE)
            raise ConfigurationError(f"{error} These are the backbone's; known are also {', '.join(known)}.") from error


def detector_for(
    architecture: Architecture,
    *,
    num_classes: int,
    image_size: int = 320,
    detector: str = "ssdlite",
    **changes: Any,
) -> SSDSpec:
    """A detector whose backbone is a classifier: its layers have the same names, so its weights fit by path.

    Args:
        architecture: the classifier's.
        num_classes: number of classes of the detector, without the background.
        image_size: pixels per side of the input.
        detector: the registered one whose extra blocks, predictors and prior boxes it gets.
        changes: other parameters, as for `SSDSpec.changed`. If the backbone has experts, the extra blocks have some,
            too, unless `condconv_extras` says otherwise.

    Returns:
        A spec that a bundle's manifest can name.

    Raises:
        ConfigurationError: an impossible value; or the architecture is no classifier.
    """
    registered = get_architecture(detector)
    if not isinstance(registered, SSDSpec):
        raise ConfigurationError(f"{detector} is no SSD detector.")
    document = as_manifest(architecture)
    document["backbone"] = document.pop("name")
    document |= {"num_classes": num_classes, "image_size": image_size}
    document["condconv_extras"] = bool(architecture.num_experts)
    return registered.changed(**document | changes)


def count_classes(spec: SSDSpec, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """How many classes weights of a detector have, without the background; None if they don't show it.

    Args:
        spec: tells how many shapes the first map has.
        shapes: of the variables by path.
    """
    shape = shapes.get("class_predictor_0/bias") or shapes.get("class_predictor_0/kernel")
    columns, rest = divmod(shape[-1] if shape else 0, len(spec.prior_boxes[0]))
    return columns - 1 if columns >= 2 and not rest else None


def as_backbone(name: Any) -> Architecture:
    """A registered classifier by its name.

    Raises:
        ConfigurationError: there is none of this name.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"Architecture parameter backbone must be a registered architecture, not {name!r}.")
    found = get_architecture(name)
    if family_of(found).task != "classification":
        raise ConfigurationError(f"Architecture parameter backbone must be a classifier; {name} is none.")
    return found
