"""Fuzzed images: real files of every accepted format, damaged in ways that follow from a seed and a number.

Run as a module this file is a worker: it decodes the numbers that it is told to and reports each on its standard
output, so that whoever started it knows the image even if this process hangs or crashes.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from condconv_serve.errors import ImageError
from condconv_serve.imaging import SufficientSize, decode
from tests import pictures
from tests.pictures import PNG_SIGNATURE, png_chunk, png_header

MAX_PIXELS = 1_000_000
MAX_SECONDS = 2.0
"""Of processor time, so that a busy machine fails nothing."""
MAX_STALL = 60
"""Seconds on the clock; against what hangs without working."""
MAX_GROWTH = 128 * 2**20
"""Bytes of resident memory. A picture of `MAX_PIXELS` takes 4 MB, and some modes need a few copies in float64."""
MAX_ADDRESS_SPACE = 512 * 2**20
"""Bytes beyond those of the idle worker; against what is allocated but not touched."""

INTEGERS: tuple[int, ...] = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    12,
    16,
    24,
    32,
    64,
    100,
    127,
    128,
    255,
    256,
    257,
    999,
    1000,
    1001,
    4096,
    32767,
    32768,
    *(65535, 65536, 10**6, 2**24 - 1, 2**28, 2**30, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 2, 2**32 - 1),
)


@functools.cache
def corpus() -> dict[str, bytes]:
    """Intact files, small so that damage hits something, in all kinds that the tests know and some more."""
    files = {}
    for size in ((12, 9), (48, 36), (130, 100)):
        for name, data in pictures.accepted(pictures.photo("coffee", size)).items():
            files[f"{name}_{size[0]}"] = data
    pixels = pictures.photo("cat", (40, 30))
    image, levels = Image.fromarray(pixels), pictures.grey(pixels)
    bilevel = image.convert("1")
    files |= {
        "gif_interlaced": pictures.encode(image.quantize(16), "GIF", interlace=1),
        "jpeg_restart": pictures.jpeg(pixels, restart_marker_blocks=2),
        "jpeg_progressive_cmyk": pictures.jpeg(image.convert("CMYK"), progressive=True),
        "jpeg_wide": pictures.jpeg(pictures.photo("coffee", (400, 300)), quality=60, subsampling=2),
        "jpeg_wide_progressive": pictures.jpeg(pictures.photo("coffee", (400, 300)), quality=60, progressive=True),
        "tiff_packbits": pictures.encode(pixels, "TIFF", compression="packbits"),
        "tiff_group3": pictures.encode(bilevel, "TIFF", compression="group3"),
        "tiff_ccitt": pictures.encode(bilevel, "TIFF", compression="tiff_ccitt"),
        "tiff_lab": pictures.encode(image.convert("LAB"), "TIFF"),
        "tiff_big": pictures.encode(pixels, "TIFF", big_tiff=True),
        "tiff_big_endian": pictures.encode(levels.astype(">u2"), "TIFF"),
        "tiff_exif": pictures.oriented(pixels, 6, "TIFF"),
        "tiff_tiles": tiled_tiff(pixels),
        "tiff_zstd": pictures.encode(pixels, "TIFF", compression="zstd"),
        "tiff_lzma": pictures.encode(pixels, "TIFF", compression="lzma"),
        "bmp_rle8": run_length_bmp(),
        "webp_exif": pictures.oriented(pixels, 5, "WEBP"),
        "png_exif": pictures.oriented(pixels, 7, "PNG"),
        "jpeg_scans": pictures.jpeg_of_many_scans(30),
    }
    return files


def tiled_tiff(pixels: pictures.Pixels) -> bytes:
    """Write the top left 16 x 16 pixels as one tile."""
    payload = pixels[:16, :16].tobytes()
    # Three channels of 8 bits would need an array of three numbers; one channel of a grey tile does as well.
    payload = payload[: 16 * 16]
    tags: dict[int, int] = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: 16, 323: 16, 324: 8, 325: 256}
    return pictures.tiff(payload, dict(tags))


def run_length_bmp() -> bytes:
    """Write a BMP of 16 x 4 pixels, run-length encoded."""
    palette = b"".join(struct.pack("<BBBB", i, 255 - i, i // 2, 0) for i in range(256))
    body = (b"\x08\x10\x08\xf0\0\0") * 3 + b"\0\x04\1\2\3\4\0\2\2\0\x0a\x33\0\0\0\1"
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 16, 4, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


# --- Damage that knows nothing of formats ---------------------------------------------------------------------------


def place(rng: random.Random, data: bytes) -> int:
    """Pick an offset; half of them in the header, where decoders branch."""
    reach = min(len(data), 128) if rng.random() < 0.5 else len(data)
    return rng.randrange(reach) if reach else 0


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    where = place(rng, data)
    return data[:where] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[where : where + 1]) + data[where + 1 :]


def set_bytes(rng: random.Random, data: bytes) -> bytes:
    where, length = place(rng, data), rng.choice((1, 1, 1, 2, 4, 16))
    fill = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return data[:where] + fill + data[where + length :]


def set_integer(rng: random.Random, data: bytes) -> bytes:
    where, width = place(rng, data), rng.choice((2, 2, 4, 4, 4, 8))
    value = rng.choice(INTEGERS) & (1 << 8 * width) - 1
    return data[:where] + value.to_bytes(width, rng.choice(("little", "big"))) + data[where + width :]


def insert(rng: random.Random, data: bytes) -> bytes:
    where = place(rng, data)
    return data[:where] + rng.randbytes(rng.choice((1, 2, 3, 4, 17, 300))) + data[where:]


def delete(rng: random.Random, data: bytes) -> bytes:
    where = place(rng, data)
    return data[:where] + data[where + rng.choice((1, 1, 2, 4, 30, len(data) // 3)) :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """Double a stretch, sometimes a thousandfold."""
    where, length = place(rng, data), rng.choice((1, 4, 12, 64, 500))
    times = rng.choice((1, 1, 2, 10, 1000))
    return data[: where + length] + data[where : where + length] * times + data[where + length :]


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((rng.randbytes(1000), data, b"PK\x03\x04" + bytes(200), bytes(100_000)))


def splice(rng: random.Random, data: bytes) -> bytes:
    """Go on as another file."""
    other = rng.choice(list(corpus().values()))
    return data[: place(rng, data)] + other[place(rng, other) :]


BLIND: tuple[Callable[[random.Random, bytes], bytes], ...]
BLIND = (flip_bit, flip_bit, set_bytes, set_bytes, set_integer, set_integer, insert, delete, repeat, truncate, append)
BLIND += (splice,)


def blind(rng: random.Random) -> tuple[str, bytes]:
    """Damage a file in one to six places."""
    name, data = rng.choice(list(corpus().items()))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(BLIND)(rng, data)
    if name.startswith("png") and rng.random() < 0.7:
        data = with_checksums(data)
    return name, data


def with_checksums(data: bytes) -> bytes:
    """Make the checksums of a damaged PNG right, so that the damage reaches the decoder."""
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kept.append(png_chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(kept)


# --- Lies that know the format --------------------------------------------------------------------------------------

COMPRESSIONS = (1, 1, 2, 3, 4, 5, 5, 6, 7, 8, 8, 32771, 32773, 32809, 32946, 34676, 34677, 34712, 34925, 50000, 50001)


def directory(rng: random.Random) -> tuple[str, bytes]:
    """Change entries of a real TIFF's directory: tag, type, count or value, or where the next directory lies."""
    name, data = rng.choice([(name, data) for name, data in corpus().items() if name.startswith("tiff")])
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"\x2b\0", b"\0\x2b"):
        return name, set_integer(rng, data)
    damaged = bytearray(data)
    (start,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, start)
    for _ in range(rng.choice((1, 1, 2, 4))):
        entry = start + 2 + 12 * rng.randrange(entries)
        value = rng.choice((*INTEGERS, *COMPRESSIONS, start, entry, len(data)))
        match rng.randrange(6):
            case 0:
                known = (
                    254,
                    *range(256, 260),
                    262,
                    266,
                    *range(273, 280),
                    284,
                    292,
                    317,
                    *range(320, 326),
                    330,
                    338,
                    339,
                )
                tag = rng.choice((*known, 347, 512, 513, 514, 519, 520, 521, 530, 532, 34665, 34675, 34853))
                struct.pack_into(order + "H", damaged, entry, tag)
            case 1:
                struct.pack_into(order + "H", damaged, entry + 2, rng.randrange(20))
            case 2:
                struct.pack_into(order + "I", damaged, entry + 4, value)
            case 3:
                struct.pack_into(order + "I", damaged, start + 2 + 12 * entries, rng.choice((start, 0, 8, value)))
            case _:
                short = data[entry + 2 : entry + 4] in (b"\3\0", b"\0\3")
                struct.pack_into(
                    order + ("H" if short else "I"), damaged, entry + 8, value & 0xFFFF if short else value
                )
    return name, bytes(damaged)


def invented_tiff(rng: random.Random) -> tuple[str, bytes]:
    """Write a TIFF of random tags about a payload which is compressed as it says, or not."""
    side = rng.choice((1, 8, 16, 17, 64, 200, 1000))
    raw = rng.choice((bytes(side * side), rng.randbytes(min(side * side, 5000)), bytes(300_000)))
    compression = rng.choice(COMPRESSIONS)
    payload = zlib.compress(raw) if compression in (8, 32946) and rng.random() < 0.9 else raw[:20_000]
    tags: dict[int, int] = {
        256: side,
        257: rng.choice((side, side, 1, 1000)),
        258: rng.choice((1, 2, 4, 8, 8, 8, 12, 16, 16, 32, 64)),
        259: compression,
        262: rng.choice((0, 1, 1, 2, 3, 4, 5, 6, 8)),
        277: rng.choice((1, 1, 1, 3, 4, 5, 300)),
        284: rng.choice((1, 1, 2)),
        317: rng.choice((1, 1, 2, 3)),
        339: rng.choice((1, 1, 2, 3)),
    }
    if rng.random() < 0.5:
        tags |= {273: 8, 278: rng.choice((side, 1, 0, 2**32 - 1)), 279: rng.choice((len(payload), 0, 2**31))}
    else:
        width, height = (rng.choice((16, 16, 64, 256, 1008, 1, 0, 2**31)) for _ in range(2))
        tags |= {322: width, 323: height, 324: 8, 325: rng.choice((len(payload), 0, 2**31))}
    for tag in rng.sample(sorted(tags), rng.choice((0, 0, 1, 2))):
        del tags[tag]
    return f"invented_{compression}", pictures.tiff(payload, dict(tags))


def bomb(rng: random.Random) -> tuple[str, bytes]:
    """Write a file that announces little and holds much, or the reverse; some are within the limit of pixels."""
    side = rng.choice((1, 100, 999, 1000, 1001, 16_000, 60_000))
    inflated = zlib.compress(bytes(rng.choice((10**4, 10**6, 3 * 10**7))), 9)
    depth, colour = rng.choice(((8, 2), (16, 6), (1, 0), (8, 3), (16, 0), (2, 3)))
    chunks = [png_chunk(rng.choice((b"iCCP", b"zTXt", b"iTXt", b"eXIf")), b"a\0\0" + inflated) for _ in range(3)]
    palette = png_chunk(b"PLTE", bytes(rng.choice((3, 48, 768, 3000))))
    head = PNG_SIGNATURE + png_header(side, side, depth, colour)
    end = png_chunk(b"IEND", b"")
    large = pictures.too_large(side)
    files = {
        "png_inflating": head + palette + png_chunk(b"IDAT", inflated) + end,
        "png_metadata": head + b"".join(chunks) + palette + png_chunk(b"IDAT", inflated) + end,
        "png_crumbs": head + palette + png_chunk(b"IDAT", b"") * 5000 + png_chunk(b"IDAT", inflated) + end,
        "jpeg_scans": pictures.jpeg_of_many_scans(rng.choice((10, 50, 60, 3000))),
        "tiff_tile": pictures.tiff_tile_bomb(max(16, side // 16 * 16)),
        "gif_extensions": b"GIF89a\x10\0\x10\0\0\0\0" + b"!\xfe\x01a\0" * rng.choice((100, 50_000)) + b",",
        "jpeg_segments": b"\xff\xd8" + b"\xff\xe1\0\x08Exif\0\0" * rng.choice((100, 50_000)) + large["jpeg"][2:],
        "jpeg_fill": b"\xff\xd8" + b"\xff" * rng.choice((100, 300_000)) + large["jpeg"][2:],
        "tiff_chain": tiff_chain(rng.choice((10, 5000)), loop=rng.random() < 0.5),
    } | {f"large_{name}": data for name, data in large.items()}
    name = rng.choice(list(files))
    data = files[name]
    return name, rng.choice(BLIND)(rng, data) if rng.random() < 0.3 else data


def tiff_chain(length: int, *, loop: bool) -> bytes:
    """Write directories of one subdirectory each, which point to the next, and at the end to the first or nowhere."""
    step = 2 + 24 + 4
    directories = []
    for i in range(length):
        successor = 8 + step * (i + 1) if i + 1 < length else 8 if loop else 0
        entries = struct.pack("<HHII", 330, 4, 1, successor) + struct.pack("<HHII", 34665, 4, 1, successor)
        directories.append(struct.pack("<H", 2) + entries + struct.pack("<I", successor))
    return b"II*\0\x08\0\0\0" + b"".join(directories)


KINDS: tuple[Callable[[random.Random], tuple[str, bytes]], ...]
KINDS = (blind,) * 14 + (directory,) * 3 + (invented_tiff,) * 2 + (bomb,)


@functools.cache
def truncations() -> tuple[tuple[str, int], ...]:
    """Every beginning of the smallest file of every kind."""
    smallest = {name: data for name, data in corpus().items() if name.endswith("_12")}
    return tuple((name, length) for name, data in smallest.items() for length in range(len(data)))


def fuzzed(number: int, *, count: int, seed: int) -> tuple[str, bytes]:
    """Make image `number` of a run of `count`: of every four one is a truncation, as long as there are any."""
    rng = random.Random(f"{seed}:{number}")
    if number % 4 == 0:
        cuts = truncations()
        # A short run takes every n-th truncation, a long one all of them.
        which = number // 4 * max(1, 4 * len(cuts) // count)
        if which < len(cuts):
            name, length = cuts[which]
            return f"{name}_cut_{length}", corpus()[name][:length]
    return rng.choice(KINDS)(rng)


# --- The worker -----------------------------------------------------------------------------------------------------


def main(first: int, count: int, step: int, seed: int) -> None:
    """Decode every `step`-th image from `first` on. One line before each image, one of figures after it."""
    faulthandler.enable()
    corpus(), truncations()
    decode(corpus()["png_12"], max_pixels=MAX_PIXELS)
    idle = int(memory("VmSize")) + MAX_ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (idle, idle))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, count, step):
        print(number, flush=True)
        name, data = fuzzed(number, count=count, seed=seed)
        forget_peak()
        before, started = memory("VmRSS"), time.thread_time()
        # Both signals end the process, wherever it is.
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        signal.alarm(MAX_STALL)
        outcome = attempt(data, sufficient=(None, SufficientSize(short=4), SufficientSize(short=40))[number % 3])
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        figures = (number, name, outcome, time.thread_time() - started, memory("VmHWM") - before)
        print(json.dumps(figures), flush=True)


def attempt(data: bytes, *, sufficient: SufficientSize | None) -> str:
    """Decode; return "decoded", the error's slug, or what is wrong with that."""
    try:
        pixels = decode(data, max_pixels=MAX_PIXELS, sufficient=sufficient)
    except ImageError as error:
        return "wrong: it ran out of memory" if out_of_memory(error) else error.slug
    except BaseException as error:
        return f"wrong: it raised {error!r}"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        return f"wrong: {pixels.dtype} {pixels.shape}"
    return "decoded" if pixels.size <= 3 * MAX_PIXELS else f"wrong: {pixels.shape}"


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__, MemoryError)


def memory(what: str) -> int:
    """Read one of the kernel's figures about this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(what)


def forget_peak() -> None:
    """Let the kernel's peak of resident memory begin again."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
