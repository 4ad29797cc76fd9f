"""Untrusted bytes -> the row that a network takes."""

from __future__ import annotations

from condconv_serve.domain import JpegCropper, Preprocessing, Row
from condconv_serve.imaging.decode import decode_image, upright_jpeg_size
from condconv_serve.imaging.transform import centre_square, official_float, sufficient_side, transform

_JPEG_END = b"\xff\xd9"


def make_row(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int, crop_jpeg: JpegCropper | None = None
) -> Row:
    """Decode a photo, crop and resize it.

    Args:
        data: a whole file, in one of `ACCEPTED_FORMATS`.
        preprocessing: what the network was made for.
        max_pixels: the most pixels that a header may announce.
        crop_jpeg: decodes the centre squares of JPEGs for the exact `official` transform. JPEGs that it can't decode,
            that lie on their side, or that are CMYK are decoded like all other photos.

    Returns:
        `[image_size, image_size, 3]`, of the preprocessing's `row_type`.

    Raises:
        UnsupportedImage, ImageTooLarge, CorruptImage: as `decode_image`.
        MemoryError: there is too little memory.
    """
    size, padding = preprocessing.image_size, preprocessing.crop_padding
    if crop_jpeg is not None and (shape := upright_jpeg_size(data, max_pixels=max_pixels)) is not None:
        if not data.endswith(_JPEG_END):
            # `crop_jpeg` stops below its square. Only decoding the whole file shows that the rest is missing.
            decode_image(data, max_pixels=max_pixels)
        square = crop_jpeg(data, *centre_square(*shape, image_size=size, crop_padding=padding))
        if square is not None:
            return official_float(square, image_size=size, crop_padding=0)
    photo = decode_image(data, max_pixels=max_pixels, sufficient_side=sufficient_side(preprocessing))
    return transform(photo, preprocessing)
