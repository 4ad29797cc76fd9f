"""From photos to rows: untrusted bytes -> RGB pixels (`decode`) -> one row (`transform`)."""

from condconv_serve.imaging.decode import as_rgb, decode, decode_image
from condconv_serve.imaging.decoder import ImageDecoder, model_row
from condconv_serve.imaging.formats import ACCEPTED_FORMATS
from condconv_serve.imaging.row import make_row
from condconv_serve.imaging.transform import central, official, official_float, pillow, sufficient_side, transform

__all__ = [
    "ACCEPTED_FORMATS",
    "ImageDecoder",
    "as_rgb",
    "central",
    "decode",
    "decode_image",
    "make_row",
    "model_row",
    "official",
    "official_float",
    "pillow",
    "sufficient_side",
    "transform",
]
