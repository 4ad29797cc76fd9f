"""Compressed bodies: what comes out is what went in, and never more than allowed."""

from __future__ import annotations

import gzip
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding
from condconv_serve.http.encodings import compressed, decompressed, encoding_for, encoding_of


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
async def test_a_body_comes_out_whole(encoding: str, compress: object, size: int) -> None:
    assert callable(compress)
    body = bytes(range(250)) * (size // 250) + bytes(size % 250)
    assert await decompressed(compress(body), encoding, max_bytes=size or 1) == body


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [1000, 500_000])
async def test_what_is_compressed_here_can_be_read(encoding: str, size: int) -> None:
    body = bytes(range(250)) * (size // 250)
    smaller = await compressed(body, encoding)
    assert len(smaller) < len(body)
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(smaller) == body


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_bombs(encoding: str, compress: object) -> None:
    assert callable(compress)
    bomb = compress(bytes(30_000_000))
    with pytest.raises(BodyTooLarge, match="more than 1000 bytes once it is decompressed"):
        await decompressed(bomb, encoding, max_bytes=1000)


async def test_a_small_body_that_becomes_a_large_one_holds_nobody_up() -> None:
    size = 30_000_000
    small = gzip.compress(bytes(size))
    began = time.thread_time()
    gzip.decompress(small)
    work = time.thread_time() - began
    began = time.thread_time()
    assert len(await decompressed(small, "gzip", max_bytes=size)) == size
    assert time.thread_time() - began < work / 4


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=50), st.sampled_from(["gzip", "deflate"]), st.integers(0, 60), st.integers(0, 255))
async def test_damaged_bodies_are_read_or_refused(data: bytes, encoding: str, place: int, value: int) -> None:
    body = bytearray((gzip.compress if encoding == "gzip" else zlib.compress)(data))
    if place < len(body):
        body[place] = value
    for damaged in (bytes(body), bytes(body[:place]), data):
        try:
            assert len(await decompressed(damaged, encoding, max_bytes=50)) <= 50
        except (MalformedBody, BodyTooLarge):
            continue


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "aws-chunked", "\x00"])
def test_other_encodings(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="gzip and deflate can"):
        encoding_of(encoding)


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("gzip", "gzip"), ("x-gzip", "gzip"), (" GZip ", "gzip"), ("deflate", "deflate"), ("identity", None), ("", None)],
)
def test_which_encoding_is_declared(declared: str, encoding: str | None) -> None:
    assert encoding_of(declared) == encoding


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip, br, zstd", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0.5,identity", None),
        ("gzip;q=0", None),
        ("gzip; q=0.1", "gzip"),
        ("gzip;q=x, deflate", "deflate"),
        ("gzip;level=9, deflate;q=0.1", "deflate"),
        ("br, *", None),
        ("gzip;q=nan", None),
    ],
)
def test_which_encoding_a_client_prefers(accepted: str, encoding: str | None) -> None:
    assert encoding_for(accepted, 100_000) == encoding
    assert encoding_for(accepted, 1000) is None, "not worth it"
