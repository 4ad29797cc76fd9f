"""Untrusted bytes -> uint8 RGB pixels, with limits. Everything that Pillow may raise becomes an `ImageError`."""

from __future__ import annotations

import io
import re
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import SAMPLEFORMAT, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from condconv_serve.domain import Pixels, Placement
from condconv_serve.errors import CorruptImage, ImageError, ImageTooLarge
from condconv_serve.imaging.foreign import unread_kind
from condconv_serve.imaging.formats import (
    FormatName,
    first_gif_frame,
    recognise,
    webp_size,
)
from condconv_serve.imaging.heif import open_avif, open_heic
from condconv_serve.imaging.jpeg import check_jpeg_kind, is_lossless_jpeg, jpeg_header, whole_jpeg
from condconv_serve.imaging.limits import check_size
from condconv_serve.imaging.placement import whole_photo
from condconv_serve.imaging.png import check_png_rows, essential_png
from condconv_serve.imaging.refusal import accepted_formats, refusal
from condconv_serve.imaging.tiff import check_tiff_parts, open_tiff, tags_in, tiff_number

# `decode` has an exact limit of its own; Pillow's is one for the whole process, and vague (it warns, then raises at
# twice as much).
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SufficientSize:
    """How small a photo may become (pixels): its short side and its long side stay at least as long as these."""

    short: int = 1
    long: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPhoto:
    """A decoded photo.

    Attributes:
        image: its pixels, upright, RGB. Not an array, into which they would have to be copied: for a large photo that
            takes as long as half its decoding.
        placement: where these pixels lie in the photo at its full size. If they are fewer, the last ones on one side
            may reach beyond its edge.
    """

    image: Image.Image
    placement: Placement


def decode(data: bytes, *, max_pixels: int, sufficient: SufficientSize | None = None) -> Pixels:
    """Decode one photo to uint8 `[H, W, 3]`, RGB, read-only; the rest is as in `decode_photo`."""
    return np.asarray(decode_photo(data, max_pixels=max_pixels, sufficient=sufficient).image)


def decode_photo(data: bytes, *, max_pixels: int, sufficient: SufficientSize | None = None) -> DecodedPhoto:
    """Decode one photo, upright, first frame only.

    EXIF orientation is applied. Transparent parts lie on white. 16-bit levels are scaled to 8; wider integers and
    floats, which have no agreed range, are stretched between their extremes (floats within 0..1 are taken as such).
    Colour profiles are ignored, as the networks' training ignored them. Thread-safe.

    Args:
        data: a whole file, in one of `ACCEPTED_FORMATS`.
        max_pixels: the most pixels (width times height) that a header may announce.
        sufficient: a JPEG that is at least twice as large is decoded at 1/2, 1/4 or 1/8 of its size, but not below
            this one. None decodes everything at full size.

    Raises:
        UnsupportedImage: the bytes are no image of an accepted format, or of a kind of it that isn't read, or there are
            none.
        ImageTooLarge: the header announces more than `max_pixels`; no pixel was decoded.
        CorruptImage: the format is accepted, but the data is truncated, damaged, or of a kind that can't be read.
    """
    name = recognise(data)
    if name is None or name not in accepted_formats():
        raise refusal(name, data)
    _mute_pillow()
    try:
        with _open(name, data, max_pixels) as image:
            scale, size = 1, image.size
            if sufficient is not None and isinstance(image, JpegImageFile) and not is_lossless_jpeg(data):
                scale = _reduce(image, sufficient)
            frame = image.tile[0].extents if isinstance(image, GifImageFile) else None
            image.load()
            if isinstance(image, PngImageFile):
                check_png_rows(image, data)
            orientation = _orientation(image)
            photo = _upright(_only(frame, _rgb(image)), orientation)
            placement = whole_photo(*photo.size) if scale == 1 else _reduced(size, scale, orientation)
            return DecodedPhoto(image=photo, placement=placement)
    except ImageError:
        raise
    except Exception as error:  # Pillow's parsers may raise anything, and none of it is ours to fix.
        message = f"The {name} image is truncated, damaged, or of a kind that can't be read."
        raise CorruptImage(message) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB as `decode_photo` does: transparent parts on white, 16-bit levels scaled to 8."""
    return _rgb(image)


def upright_jpeg_size(data: bytes, *, max_pixels: int) -> tuple[int, int] | None:
    """Read width and height of a JPEG, if a decoder that knows neither EXIF nor CMYK would decode it correctly.

    Returns:
        None for all other photos, and for damaged ones: `decode_photo` knows what to do with them.

    Raises:
        ImageTooLarge: the header announces more than `max_pixels`.
    """
    if recognise(data) != "JPEG":
        return None
    _mute_pillow()
    try:
        with _open("JPEG", data, max_pixels) as image:
            upright = _orientation(image) in (None, 1)
            return image.size if upright and image.mode in ("L", "RGB") else None
    except ImageTooLarge:
        raise
    except Exception:
        return None


_PIECE = 1 << 18
"""Pixels that are converted at once where several copies are needed."""
_PNG_BIT_DEPTH, _BMP_BIT_DEPTH = 24, 28
"""Where the headers have it."""


def _open(name: FormatName, data: bytes, max_pixels: int) -> ImageFile:
    """Read the header only, and refuse it if it announces too much.

    The readers are called by name: `Image.open` would try others, and warn. So a JPEG which holds several pictures
    (MPO, from cameras and phones) is simply a JPEG, and gives its first.
    """
    match name:
        case "JPEG":
            check_jpeg_kind(data)
            image: ImageFile = JpegImageFile(io.BytesIO(jpeg_header(data)))
            check_size(image.size, max_pixels)
            whole = whole_jpeg(data)
            image.fp = io.BytesIO(whole)
            image.decodermaxblock = len(whole)  # what is coded arithmetically can't be decoded piece by piece
        case "PNG":
            image = PngImageFile(io.BytesIO(essential_png(data)))
            key = image.info.get("transparency")
            if image.mode == "L" and isinstance(key, int):  # levels are scaled from 2 and 4 bits, but not this one
                image.info["transparency"] = key * 255 // (2 ** data[_PNG_BIT_DEPTH] - 1)
            if isinstance(key, tuple) and data[_PNG_BIT_DEPTH] == 16:  # the pixels come in 8 bits: which had this one?
                raise unread_kind("a PNG image with 16 bits per sample and a transparent colour")
        case "WebP":
            # This reader allocates the picture while it opens the file.
            check_size(webp_size(data), max_pixels)
            image = WebPImageFile(io.BytesIO(data))
        case "GIF":
            image = GifImageFile(io.BytesIO(first_gif_frame(data)))
        case "TIFF":
            image = tiff = open_tiff(data)
            # A tile may be larger than the picture, and is decoded as a whole.
            tile = tiff_number(tiff.tag_v2, Base.TileWidth, 1), tiff_number(tiff.tag_v2, Base.TileLength, 1)
            check_size(tile, max_pixels)
            check_size(image.size, max_pixels)
            check_tiff_parts(tiff.tag_v2, data)
        case "BMP":
            image = _open_bmp(data)
        case "AVIF":
            image = open_avif(data, max_pixels)
        case "HEIC":
            image = open_heic(data, max_pixels)
    check_size(image.size, max_pixels)
    return image


def _open_bmp(data: bytes) -> BmpImageFile:
    try:
        return BmpImageFile(io.BytesIO(data))
    except OSError as error:
        # Pillow says it of layouts of colours, depths and compressions: those of printers, for example.
        if str(error).startswith("Unsupported BMP") and data[_BMP_BIT_DEPTH]:
            raise unread_kind("a BMP image of a rare kind") from error
        raise


def _reduce(image: JpegImageFile, sufficient: SufficientSize) -> int:
    """Let the decoder compute fewer pixels, each the mean of a square: most of a large photo's time goes there.

    Returns:
        The side of such a square; 1 if all pixels are computed.
    """
    possible = min(min(image.size) // sufficient.short, max(image.size) // sufficient.long)
    scale = next((scale for scale in (8, 4, 2) if scale <= possible), 1)
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    return image.decoderconfig[0] if image.decoderconfig else 1


def _reduced(size: tuple[int, int], scale: int, orientation: int | None) -> Placement:
    """Where the pixels of a reduced photo lie: whole squares, the last of which reach beyond the right and lower edge.

    Args:
        size: width and height as they are stored, before the photo is turned.
        scale: side of a square.
        orientation: of the photo.
    """
    width, height = size
    beyond_right, beyond_bottom = -width % scale, -height % scale
    if orientation in _ON_SIDE:
        width, height, beyond_right, beyond_bottom = height, width, beyond_bottom, beyond_right
    return Placement(
        photo_width=width,
        photo_height=height,
        left=-beyond_right if orientation in _RIGHT_BECOMES_LEFT else 0,
        top=-beyond_bottom if orientation in _BOTTOM_BECOMES_TOP else 0,
        width=width + beyond_right,
        height=height + beyond_bottom,
    )


def _rgb(image: Image.Image) -> Image.Image:
    """Convert from any mode that the readers give."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    # Premultiplied grey converts to nothing but plain grey.
    straight = image.convert("LA") if image.mode == "La" else image
    photo = Image.new("RGB", image.size)
    rows = max(1, _PIECE // image.width)
    for top in range(0, image.height, rows):  # as a whole, the copies would take twice as much memory
        band = straight.crop((0, top, image.width, min(top + rows, image.height)))
        canvas = Image.new("RGBA", band.size, "white")
        canvas.alpha_composite(band.convert("RGBA"))
        photo.paste(canvas.convert("RGB"), (0, top))
    return photo


def _only(frame: tuple[int, int, int, int] | None, photo: Image.Image) -> Image.Image:
    """Make white what lies around a GIF's frame: Pillow makes it whatever colour comes first in the palette."""
    if frame is None or frame == (0, 0, *photo.size):
        return photo
    screen = Image.new("RGB", photo.size, "white")
    screen.paste(photo.crop(frame), frame[:2])
    return screen


def _deep_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion would clip it."""
    levels = np.asarray(image)
    inverted = False
    high = 65535.0
    if isinstance(image, TiffImageFile):
        inverted = tiff_number(image.tag_v2, Base.PhotometricInterpretation, 1) == 0
        high = 2.0 ** tiff_number(image.tag_v2, Base.BitsPerSample, 16) - 1
        if high >= 2**31 and tiff_number(image.tag_v2, SAMPLEFORMAT, 1) == 1:
            levels = levels.view(np.uint32)  # Pillow has no unsigned mode
    if levels.dtype.itemsize == 2:
        table = np.rint(np.clip(np.arange(65536) * (255 / high), 0, 255)).astype(np.uint8)
        grey = table[levels]
    else:
        grey = _stretched(levels, may_be_shares=image.mode == "F")
    if isinstance(key := image.info.get("transparency"), int):
        grey[levels == key] = 255
    return Image.fromarray(255 - grey if inverted else grey)


def _stretched(levels: NDArray[Any], *, may_be_shares: bool) -> NDArray[np.uint8]:
    """Stretch levels to 0..255: from their extremes, or from 0..1 if they may be shares and lie in there.

    Piece by piece, since copies of a large picture in float64 would take gigabytes.
    """
    flat, grey = levels.ravel(), np.empty(levels.size, np.uint8)
    pieces = [slice(start, start + _PIECE) for start in range(0, flat.size, _PIECE)]
    finite = (flat[piece][np.isfinite(flat[piece])] for piece in pieces)
    extremes = [(float(found.min()), float(found.max())) for found in finite if found.size]
    low, high = min((least for least, _ in extremes), default=0.0), max((most for _, most in extremes), default=1.0)
    if may_be_shares and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    for piece in pieces:
        with np.errstate(invalid="ignore"):  # NumPy complains of signalling NaNs when they are cast.
            wide = flat[piece].astype(np.float64)
        filled = np.nan_to_num(wide, copy=False, nan=low, posinf=high, neginf=low)
        grey[piece] = np.rint((filled - low) * (255 / max(high - low, 1e-300)))
    return grey.reshape(levels.shape)


_EXIF_PREFIX = re.compile(rb"\A(Exif\0\0){1,2}")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What turning does: 5 to 8 exchange width and height, and then, seen that way round, some mirror.
_ON_SIDE, _RIGHT_BECOMES_LEFT, _BOTTOM_BECOMES_TOP = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def _orientation(image: ImageFile) -> int | None:
    """Read the EXIF orientation; damaged metadata doesn't spoil a picture, it only says nothing.

    TIFF's reader turns the picture itself and then forgets the tag.
    """
    for xmp in ("xmp", "XML:com.adobe.xmp"):  # where Pillow looks if EXIF says nothing, which browsers don't
        image.info.pop(xmp, None)
    exif = image.info.get("exif") or b""
    if any(tag.values > 1 for tag in tags_in(_EXIF_PREFIX.sub(b"", exif)) if tag.number == Base.Orientation):
        return None  # Pillow would make an object of each of millions
    try:
        orientation = image.getexif().get(Base.Orientation)
    except Exception:
        return None
    return orientation if isinstance(orientation, int) else None


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = None if orientation is None else _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


_PILLOW = re.compile(r"PIL\.")
_filter_lock = threading.Lock()


def _mute_pillow() -> None:
    """Keep Pillow's warnings about odd files out of the log: the sender made the file.

    One filter that stays, because `warnings.catch_warnings` swaps the filters of all threads. If somebody changes the
    filters, it is put in front again.
    """
    if _is_muted():
        return
    with _filter_lock:
        if not _is_muted():
            warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _is_muted() -> bool:
    first = warnings.filters[0] if warnings.filters else None
    return first is not None and first[0] == "ignore" and first[3] == _PILLOW
