"""Photos on their way to the network: untrusted bytes -> RGB pixels (`decode`) -> one row (`transform`)."""

from service.imaging.decode import decode, decode_image
from service.imaging.formats import ACCEPTED_FORMATS
from service.imaging.row import make_row
from service.imaging.transform import official, official_float, pillow, sufficient_side, transform

__all__ = [
    "ACCEPTED_FORMATS",
    "decode",
    "decode_image",
    "make_row",
    "official",
    "official_float",
    "pillow",
    "sufficient_side",
    "transform",
]
