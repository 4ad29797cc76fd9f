"""From photos to rows: untrusted bytes -> RGB pixels (`decode`) -> one row (`transform`)."""

from condconv_serve.imaging.decode import DecodedPhoto, SufficientSize, as_rgb, decode, decode_photo
from condconv_serve.imaging.decoder import ImageDecoder, model_row
from condconv_serve.imaging.formats import ACCEPTED_FORMATS
from condconv_serve.imaging.placement import place_row
from condconv_serve.imaging.row import make_row
from condconv_serve.imaging.transform import (
    asymmetric,
    central,
    official,
    official_float,
    pillow,
    sufficient_size,
    transform,
)

__all__ = [
    "ACCEPTED_FORMATS",
    "DecodedPhoto",
    "ImageDecoder",
    "SufficientSize",
    "as_rgb",
    "asymmetric",
    "central",
    "decode",
    "decode_photo",
    "make_row",
    "model_row",
    "official",
    "official_float",
    "pillow",
    "place_row",
    "sufficient_size",
    "transform",
]
