"""Untrusted bytes -> the row that a network takes."""

from __future__ import annotations

from condconv_serve.domain import JpegCropper, MadeRow, Preprocessing
from condconv_serve.imaging.decode import decode_photo, upright_jpeg_size
from condconv_serve.imaging.placement import centre_square, place_row
from condconv_serve.imaging.transform import official_float, sufficient_size, transform

_JPEG_END = b"\xff\xd9"


def make_row(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int, crop_jpeg: JpegCropper | None = None
) -> MadeRow:
    """Decode a photo, and transform it.

    Args:
        data: a whole file, in one of `ACCEPTED_FORMATS`.
        preprocessing: what the network was made for.
        max_pixels: the most pixels that a header may announce.
        crop_jpeg: decodes the centre squares of JPEGs for the exact `official` transform. JPEGs that it can't decode,
            that lie on their side, or that are CMYK are decoded like all other photos. Other transforms don't use it.

    Returns:
        A row `[image_size, image_size, 3]` of the preprocessing's `row_type`, and where it lies in the photo. Its time
        isn't taken.

    Raises:
        UnsupportedImage, ImageTooLarge, CorruptImage: as `decode_photo`.
        MemoryError: there is too little memory.
    """
    if crop_jpeg is not None and preprocessing.official_decoding:
        cropped = _exact_crop(data, preprocessing, max_pixels, crop_jpeg)
        if cropped is not None:
            return cropped
    photo = decode_photo(data, max_pixels=max_pixels, sufficient=sufficient_size(preprocessing))
    width, height = photo.image.size
    return MadeRow(
        transform(photo.image, preprocessing),
        placement=place_row(preprocessing, width=width, height=height, within=photo.placement),
    )


def _exact_crop(data: bytes, preprocessing: Preprocessing, max_pixels: int, crop_jpeg: JpegCropper) -> MadeRow | None:
    """The row of a JPEG that the official evaluation would decode; None for others."""
    shape = upright_jpeg_size(data, max_pixels=max_pixels)
    if shape is None:
        return None
    if not data.endswith(_JPEG_END):
        # `crop_jpeg` stops below its square. Only decoding the whole file shows that the rest is missing.
        decode_photo(data, max_pixels=max_pixels)
    (width, height), size = shape, preprocessing.image_size
    square = crop_jpeg(data, *centre_square(width, height, image_size=size, crop_padding=preprocessing.padding))
    if square is None:
        return None
    row = official_float(square, image_size=size, crop_padding=0)
    return MadeRow(row, placement=place_row(preprocessing, width=width, height=height))
