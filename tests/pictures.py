"""Test photos: real ones, in every accepted format and mode, and files made to do harm.

The photographs come with scikit-image. `accepted` and its relatives give `name -> file` dictionaries; what Pillow can't
write is written here by hand.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from condconv_serve.domain import Pixels

PHOTOS = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
ORIENTATIONS = range(1, 9)


@functools.cache
def photo(name: str = "coffee", size: tuple[int, int] | None = None) -> Pixels:
    """Return one of `PHOTOS` as read-only uint8 `[H, W, 3]`, resized to `size` (width, height) if given."""
    if size is not None:
        return _read_only(Image.fromarray(photo(name)).resize(size))
    found = importlib.util.find_spec("skimage")  # importing it takes a second
    assert found is not None
    assert found.origin is not None
    with Image.open(Path(found.origin).parent / "data" / PHOTOS[name]) as image:
        return _read_only(image)


def _read_only(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    pixels.flags.writeable = False
    return pixels


def grey(pixels: Pixels) -> Pixels:
    """Return the luminance, uint8 `[H, W]`."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def with_alpha(pixels: Pixels) -> Pixels:
    """Return uint8 `[H, W, 4]`: transparent on the left, opaque on the right, a ramp between."""
    height, width, _ = pixels.shape
    ramp = np.clip(np.linspace(-64, 320, width), 0, 255).astype(np.uint8)
    return np.dstack([pixels, np.broadcast_to(ramp, (height, width))])


def on_white(rgba: Pixels) -> NDArray[np.float64]:
    """Return what `[H, W, 4]` looks like on white, as float `[H, W, 3]`."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def encode(pixels: NDArray[Any] | Image.Image, file_format: str, **options: Any) -> bytes:
    """Write an array or a Pillow image with Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def jpeg(pixels: Pixels | Image.Image, **options: Any) -> bytes:
    """Write a JPEG of quality 95 without chroma subsampling, so that little is lost."""
    return encode(pixels, "JPEG", **{"quality": 95, "subsampling": 0} | options)


def exif(orientation: int) -> bytes:
    """Return an EXIF block with nothing but an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def as_stored(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an upright picture the way that a camera with this EXIF orientation stores it."""
    swapped = pixels.swapaxes(0, 1)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }[orientation]


def oriented(pixels: Pixels, orientation: int, file_format: str, **options: Any) -> bytes:
    """Write a picture turned, with the EXIF orientation that makes it upright again."""
    stored = np.ascontiguousarray(as_stored(pixels, orientation))
    return encode(stored, file_format, exif=exif(orientation), **options)


def ycck_jpeg(pixels: Pixels) -> bytes:
    """Write the JPEG that Adobe programs make of CMYK: inverted, its first three channels as YCbCr."""
    ycc = np.asarray(Image.fromarray(255 - pixels).convert("YCbCr"))
    black = np.full(pixels.shape[:2], 255, np.uint8)
    # Pillow writes CMYK inverted and unconverted, so inverting first stores exactly these four channels.
    inverted = 255 - np.dstack([ycc, black])
    file = jpeg(Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), inverted.tobytes()))
    marker = file.index(b"Adobe")
    return file[: marker + 11] + b"\x02" + file[marker + 12 :]


def multi_picture_jpeg(pixels: Pixels) -> bytes:
    """Write an MPO as stereo cameras and phones do: the picture, then another one."""
    return encode(pixels, "MPO", save_all=True, append_images=[Image.fromarray(255 - pixels)], quality=95)


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Write one chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Write the IHDR chunk; `colour` is 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA."""
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(samples: NDArray[Any], *, extra: Iterable[bytes] = (), after: Iterable[bytes] = ()) -> bytes:
    """Write uint8 or uint16 samples `[H, W, 1 to 4]`, with more chunks before and after the pixels."""
    height, width, channels = samples.shape
    depth = 8 * samples.dtype.itemsize
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = png_header(width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels])
    body = png_chunk(b"IDAT", zlib.compress(raw))
    return b"".join([PNG_SIGNATURE, header, *extra, body, *after, png_chunk(b"IEND", b"")])


TIFF_WIDTH, TIFF_LENGTH, TIFF_BITS, TIFF_COMPRESSION, TIFF_PHOTOMETRIC = 256, 257, 258, 259, 262
TIFF_OFFSETS, TIFF_SAMPLES, TIFF_ROWS_PER_STRIP, TIFF_COUNTS = 273, 277, 278, 279
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH, TIFF_TILE_OFFSETS, TIFF_TILE_COUNTS, TIFF_EXTRA_SAMPLES = 322, 323, 324, 325, 338


def tiff(payload: bytes, tags: dict[int, int | Sequence[int]]) -> bytes:
    """Write a little-endian TIFF of one directory; the pixels lie at offset 8. At most two numbers per tag."""
    entries = b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, int):
            entries += struct.pack("<HHII", tag, 4, 1, value)
        else:
            first, second = value
            entries += struct.pack("<HHIHH", tag, 3, 2, first, second)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    padding = b"\0" * (len(payload) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(payload) + len(padding)) + payload + padding + directory


def raw_tiff(samples: NDArray[Any], tags: dict[int, int | Sequence[int]], payload: bytes | None = None) -> bytes:
    """Write samples `[H, W]` or `[H, W, C]`, or `payload` for them, in one strip; `tags` come on top or instead."""
    payload = payload or samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    height, width = samples.shape[:2]
    basic: dict[int, int | Sequence[int]] = {
        TIFF_WIDTH: width,
        TIFF_LENGTH: height,
        TIFF_BITS: 8 * samples.dtype.itemsize,
        TIFF_COMPRESSION: 1,
        TIFF_PHOTOMETRIC: 1,
        TIFF_OFFSETS: 8,
        TIFF_SAMPLES: samples.shape[2] if samples.ndim == 3 else 1,
        TIFF_ROWS_PER_STRIP: height,
        TIFF_COUNTS: len(payload),
    }
    return tiff(payload, basic | tags)


def avif(pixels: NDArray[Any] | Image.Image, **options: Any) -> bytes:
    """Write an AVIF of quality 95 without chroma subsampling, quickly."""
    return encode(pixels, "AVIF", **{"quality": 95, "subsampling": "4:4:4", "speed": 10} | options)


def heic(image: Image.Image, **options: Any) -> bytes:
    """Write a HEIC of quality 95 without chroma subsampling, quickly."""
    file = io.BytesIO()
    quick = {"quality": 95, "chroma": 444, "enc_params": {"preset": "ultrafast"}}
    pillow_heif.from_pillow(image).save(file, **quick | options)
    return file.getvalue()


def box(name: bytes, *content: bytes) -> bytes:
    """Write a box of the ISO base media format."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def media_type(*brands: bytes) -> bytes:
    """Write the box with which such a file begins; the first brand is the major one."""
    return box(b"ftyp", brands[0], bytes(4), *brands)


def large_item(brand: bytes, kind: bytes, side: int) -> bytes:
    """Write a file of one item whose header announces `side x side` pixels."""
    size = box(b"ispe", bytes(4), struct.pack(">II", side, side))
    main = box(b"pitm", bytes(4), struct.pack(">H", 1))
    entry = box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", 1, 0, kind), b"\0")
    kinds = box(b"iinf", bytes(4), struct.pack(">H", 1), entry)
    return media_type(brand, b"mif1") + box(b"meta", bytes(4), main, kinds, box(b"iprp", box(b"ipco", size)))


class Written(Mapping[str, bytes]):
    """Files by name, each written once, when it is first asked for."""

    def __init__(self, write: Mapping[str, Callable[[], bytes]]) -> None:
        self._write = write
        self._done: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._done:
            self._done[name] = self._write[name]()
        return self._done[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._write)

    def __len__(self) -> int:
        return len(self._write)


def accepted(pixels: Pixels) -> Mapping[str, bytes]:
    """Write one RGB picture in every accepted format and mode (some lose colour, depth, or parts to white).

    Each is written when it is first asked for: whoever collects tests wants only the names.
    """
    image = Image.fromarray(pixels)
    other = Image.fromarray(255 - pixels)
    rgba = Image.fromarray(with_alpha(pixels))
    levels = grey(pixels)
    deep = levels.astype(np.uint16) * 257
    palette = image.quantize(64)
    bilevel = image.convert("1")
    return Written(
        {
            "jpeg": lambda: jpeg(pixels),
            "jpeg_subsampled": lambda: jpeg(pixels, subsampling=2, quality=85),
            "jpeg_progressive": lambda: jpeg(pixels, progressive=True),
            "jpeg_grey": lambda: jpeg(levels),
            "jpeg_cmyk": lambda: jpeg(image.convert("CMYK")),
            "jpeg_ycck": lambda: ycck_jpeg(pixels),
            "jpeg_exif": lambda: jpeg(pixels, exif=exif(6)),
            "mpo": lambda: multi_picture_jpeg(pixels),
            "png": lambda: encode(pixels, "PNG"),
            "png_rgba": lambda: encode(rgba, "PNG"),
            "png_grey": lambda: encode(levels, "PNG"),
            "png_grey_alpha": lambda: encode(rgba.convert("LA"), "PNG"),
            "png_palette": lambda: encode(palette, "PNG"),
            "png_palette_transparency": lambda: encode(palette, "PNG", transparency=bytes(range(0, 256, 4))),
            "png_1bit": lambda: encode(bilevel, "PNG"),
            "png_16bit_grey": lambda: png(deep[..., None]),
            "png_16bit_grey_alpha": lambda: png(np.dstack([deep, deep])),
            "png_16bit_rgb": lambda: png(pixels.astype(np.uint16) * 257),
            "png_16bit_rgba": lambda: png(with_alpha(pixels).astype(np.uint16) * 257),
            "png_animated": lambda: encode(image, "PNG", save_all=True, append_images=[other]),
            "webp": lambda: encode(pixels, "WEBP", quality=95),
            "webp_lossless": lambda: encode(pixels, "WEBP", lossless=True),
            "webp_alpha": lambda: encode(rgba, "WEBP", lossless=True, exact=True),
            "webp_animated": lambda: encode(image, "WEBP", save_all=True, append_images=[other], lossless=True),
            "gif": lambda: encode(palette, "GIF"),
            "gif_transparency": lambda: encode(palette, "GIF", transparency=3),
            "gif_animated": lambda: encode(palette, "GIF", save_all=True, append_images=[other.quantize(64)]),
            "tiff": lambda: encode(pixels, "TIFF"),
            "tiff_lzw": lambda: encode(pixels, "TIFF", compression="tiff_lzw"),
            "tiff_deflate": lambda: encode(pixels, "TIFF", compression="tiff_adobe_deflate"),
            "tiff_jpeg": lambda: encode(pixels, "TIFF", compression="jpeg", quality=95),
            "tiff_rgba": lambda: encode(rgba, "TIFF"),
            "tiff_cmyk": lambda: encode(image.convert("CMYK"), "TIFF"),
            "tiff_palette": lambda: encode(palette, "TIFF"),
            "tiff_grey": lambda: encode(levels, "TIFF"),
            "tiff_16bit_grey": lambda: encode(deep, "TIFF"),
            "tiff_16bit_grey_lzw": lambda: encode(deep, "TIFF", compression="tiff_lzw"),
            "tiff_float": lambda: encode(levels.astype(np.float32) / 255, "TIFF"),
            "tiff_1bit": lambda: encode(bilevel, "TIFF", compression="group4"),
            "tiff_pages": lambda: encode(image, "TIFF", save_all=True, append_images=[other]),
            "bmp": lambda: encode(pixels, "BMP"),
            "bmp_palette": lambda: encode(palette, "BMP"),
            "bmp_1bit": lambda: encode(bilevel, "BMP"),
            "avif": lambda: avif(image),
            "avif_grey": lambda: avif(levels),
            "avif_alpha": lambda: avif(rgba),
            "avif_animated": lambda: avif(image, save_all=True, append_images=[other]),
            "heic": lambda: heic(image),
            "heic_grey": lambda: heic(image.convert("L")),
            "heic_alpha": lambda: heic(rgba),
            "heic_tiles": lambda: heic(image, tile_size=64),
        }
    )


@functools.cache
def unsupported() -> dict[str, bytes]:
    """Write files that are no image of an accepted format, though some are images."""
    image = Image.fromarray(photo(size=(32, 24)))
    archive = b"PK\x03\x04\x14\0\0\0\0\0" + bytes(20) + b"photo.jpg" + jpeg(photo(size=(8, 8)))
    return {
        "empty": b"",
        "text": b"BMW is not a bitmap, though it begins like one.",
        "html": b"<!doctype html><title>502 Bad Gateway</title>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
        "pdf": b"%PDF-1.7\n1 0 obj << /Type /Catalog >> endobj\ntrailer << /Root 1 0 R >>\n%%EOF",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "zip": archive,
        "ico": encode(image, "ICO"),
        "icns": b"icns" + struct.pack(">I", 8),
        "ppm": encode(image, "PPM"),
        "tga": encode(image, "TGA"),
        "jpeg2000": encode(image, "JPEG2000"),
        "mp4": media_type(b"isom", b"mp41") + bytes(64),
        "wav": b"RIFF\x24\0\0\0WAVEfmt ",
        "one_byte": b"\xff",
        "zeros": bytes(4096),
    }


@functools.cache
def too_large(side: int = 60_000) -> dict[str, bytes]:
    """Write tiny files whose headers announce `side x side` pixels, in every accepted format."""
    start = struct.pack(">HH", side, side)
    frame = b"\xff\xc0\0\x11\x08" + start + b"\x03\x01\x11\0\x02\x11\0\x03\x11\0"
    scan = b"\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\x3f\0" + bytes(9)
    lossy = b"VP8 " + struct.pack("<I", 10) + b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)
    lossless = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(5)
    three_bytes = (side - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + three_bytes * 2
    # The disposal makes Pillow allocate the whole frame as soon as it opens the file.
    control = b"!\xf9\x04\x08\0\0\0\0"
    descriptor = b",\0\0\0\0" + struct.pack("<HH", side, side) + b"\0\x08\x04\0\0\0\0\0;"
    bitmap = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return {
        "jpeg": b"\xff\xd8" + frame + scan,
        "png": PNG_SIGNATURE
        + png_header(side, side)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b""),
        "webp_lossy": b"RIFF" + struct.pack("<I", 4 + len(lossy)) + b"WEBP" + lossy,
        "webp_lossless": b"RIFF" + struct.pack("<I", 4 + len(lossless)) + b"WEBP" + lossless,
        "webp_extended": b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended,
        "gif_screen": b"GIF89a" + struct.pack("<HH", side, side) + b"\0\0\0" + control + descriptor,
        "gif_frame": b"GIF89a" + struct.pack("<HH", 1, 1) + b"\0\0\0" + control + descriptor,
        "gif_confusing": b"GIF89a\x01\0\x01\0\0\0\0!\x01\0" + control + descriptor,
        "tiff": raw_tiff(np.zeros((1, 1), np.uint8), {TIFF_WIDTH: side, TIFF_LENGTH: side}),
        "tiff_tile": tiff_tile_bomb(side // 16 * 16),
        "bmp": bitmap + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "avif": large_item(b"avif", b"av01", side),
        "heic": large_item(b"heic", b"hvc1", side),
    }


def tiff_tile_bomb(side: int) -> bytes:
    """Write a TIFF of 16 x 16 pixels in a single tile of `side x side`, which is decoded as a whole."""
    payload = zlib.compress(bytes(1 << 20))
    tags: dict[int, int | Sequence[int]] = {
        TIFF_WIDTH: 16,
        TIFF_LENGTH: 16,
        TIFF_BITS: 8,
        TIFF_COMPRESSION: 8,
        TIFF_PHOTOMETRIC: 1,
        TIFF_SAMPLES: 1,
        TIFF_TILE_WIDTH: side,
        TIFF_TILE_LENGTH: side,
        TIFF_TILE_OFFSETS: 8,
        TIFF_TILE_COUNTS: len(payload),
    }
    return tiff(payload, tags)


def jpeg_of_many_scans(scans: int) -> bytes:
    """Write a progressive JPEG whose last scan is repeated: few bytes, but the decoder walks the picture each time."""
    plain = jpeg(Image.new("RGB", (64, 64), "teal"), progressive=True)
    last = plain[plain.rindex(b"\xff\xc4") : -2]
    return plain[:-2] + last * scans + plain[-2:]


@functools.cache
def corrupt() -> dict[str, bytes]:
    """Write files of accepted formats which are truncated, damaged, or contradict themselves."""
    pixels = photo(size=(48, 36))
    files = accepted(pixels)
    names = ("jpeg", "jpeg_progressive", "png", "webp", "gif", "tiff", "tiff_lzw", "bmp", "avif", "heic")
    halves = {f"half_{name}": files[name][: len(files[name]) // 2] for name in names}
    headers = {f"header_of_{name}": files[name][:20] for name in names}
    wrong_checksum = bytearray(files["png"])
    # The last four bytes before the twelve of the end chunk belong to the pixels' checksum.
    wrong_checksum[-14] ^= 1
    return {
        **halves,
        **headers,
        "png_wrong_checksum": bytes(wrong_checksum),
        "png_without_pixels": PNG_SIGNATURE + png_header(4, 4) + png_chunk(b"IEND", b""),
        "png_zero_width": PNG_SIGNATURE + png_header(0, 4) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""),
        "gif_zero_size": b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\x08\0;",
        "gif_without_frame": b"GIF89a\x04\0\x04\0\0\0\0;",
        "bmp_zero_size": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, *[0] * 10),
        "jpeg_signature_only": b"\xff\xd8\xff",
        "jpeg_and_noise": b"\xff\xd8\xff" + np.random.default_rng(0).bytes(2000),
        "jpeg_many_scans": jpeg_of_many_scans(5000),
        "tiff_signature_only": b"II*\0\x08\0\0\0",
        "tiff_own_successor": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "webp_signature_only": b"RIFF\x04\0\0\0WEBP",
        "avif_signature_only": media_type(b"avif", b"mif1"),
        "heic_header_only": large_item(b"heic", b"hvc1", 16),
    }
