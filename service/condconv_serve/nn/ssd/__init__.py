"""SSD detectors over the feature maps of any family, static or CondConv: spec, builder, prior boxes, box coding."""

from condconv_serve.nn.families import Family
from condconv_serve.nn.ssd.architectures import ARCHITECTURES
from condconv_serve.nn.ssd.build import (
    BOX_ENCODINGS,
    CLASS_LOGITS,
    build_ssd,
    predictions_of,
    priors_of,
    variances_of,
)
from condconv_serve.nn.ssd.coding import VARIANCES, ClassScores, DecodeBoxes, decode, encode
from condconv_serve.nn.ssd.names import PUBLISHED
from condconv_serve.nn.ssd.parameters import ExtraArgs
from condconv_serve.nn.ssd.priors import prior_boxes, prior_shapes
from condconv_serve.nn.ssd.spec import SSDSpec, count_classes, detector_for

FAMILY = Family("ssd", ARCHITECTURES, build_ssd, published=PUBLISHED, task="detection", count_classes=count_classes)

__all__ = [
    "BOX_ENCODINGS",
    "CLASS_LOGITS",
    "FAMILY",
    "VARIANCES",
    "ClassScores",
    "DecodeBoxes",
    "ExtraArgs",
    "SSDSpec",
    "build_ssd",
    "decode",
    "detector_for",
    "encode",
    "predictions_of",
    "prior_boxes",
    "prior_shapes",
    "priors_of",
    "variances_of",
]
