"""Annotated photos: which objects are where, as COCO's JSON and Pascal VOC's XML say it."""

from condconv_serve.inputs.annotations.annotated import AnnotatedImage, Annotations, LeftOut, Tally, place
from condconv_serve.inputs.annotations.find import load_annotations

__all__ = ["AnnotatedImage", "Annotations", "LeftOut", "Tally", "load_annotations", "place"]
