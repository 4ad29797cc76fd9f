"""Files that aren't read here are called by their name; what nobody knows is called nothing."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from condconv_serve.errors import UnsupportedImage
from condconv_serve.imaging import decode
from condconv_serve.imaging.foreign import identify
from tests import pictures

PHOTO = pictures.photo("coffee", (64, 48))
JPEG = pictures.jpeg(PHOTO)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FORM = b'--abc\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + JPEG


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, kind)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.jpg", JPEG)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("photo.jpg")
        entry.size = len(JPEG)
        archive.addfile(entry, io.BytesIO(JPEG))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, PHOTO)
    return file.getvalue()


KNOWN = {
    "CR3": pictures.media_type(b"crx ", b"crx ", b"isom"),
    "MP4 or QuickTime": pictures.media_type(b"isom", b"isom", b"mp41"),
    "MP4 or QuickTime)": pictures.media_type(b"qt  "),
    "JPEG XL": b"\xff\x0a" + bytes(40),
    "JPEG XL image": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
    "JPEG 2000": saved("JPEG2000"),
    "PSD": b"8BPS\0\1" + bytes(40),
    "PDF": saved("PDF"),
    "PostScript": saved("EPS"),
    "ICO": saved("ICO"),
    "Netpbm": saved("PPM"),
    "Matroska or WebM": b"\x1a\x45\xdf\xa3" + bytes(40),
    "AVI": b"RIFF\0\0\0\0AVI LIST",
    "gzip": gzip.compress(JPEG),
    "zip": zipped(),
    "bzip2": bz2.compress(JPEG),
    "xz": lzma.compress(JPEG),
    "tar": tarred(),
    "NumPy": array(),
    "git lfs pull": POINTER,
    "SVG": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML": b"\n<!DOCTYPE html><title>502 Bad Gateway</title>",
    "data URL": b"data:image/jpeg;base64," + base64.b64encode(JPEG),
    "in base64": base64.b64encode(JPEG),
    "image in base64": base64.encodebytes(saved("PNG")),
    "an image in base64": base64.urlsafe_b64encode(saved("GIF")).rstrip(b"="),
    "address": b"https://example.org/photo.jpg",
    "form": FORM,
    "application/json": b'{"images": ["eA=="]}',
    "DICOM": bytes(128) + b"DICM" + bytes(40),
}


@pytest.mark.parametrize("says", KNOWN)
def test_files_of_other_kinds_are_called_by_their_name(says: str) -> None:
    with pytest.raises(UnsupportedImage) as refused:
        decode(KNOWN[says], max_pixels=10**6)
    message = str(refused.value)
    assert message.startswith("This is ")
    assert says in message
    assert message.endswith(" JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and HEIC are accepted.")


@pytest.mark.parametrize("data", [bytes(4096), b"\xff", b"BMW is a car", b"/9j/ is how it begins: no!", b"P7 photo"])
def test_what_nobody_knows_is_called_nothing(data: bytes) -> None:
    assert identify(data) is None
    with pytest.raises(UnsupportedImage, match=r"^These bytes are no image of an accepted format; JPEG, PNG"):
        decode(data, max_pixels=10**6)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(UnsupportedImage, match=r"^The image is empty; JPEG"):
        decode(b"", max_pixels=10**6)


@pytest.mark.parametrize("data", KNOWN.values(), ids=list(KNOWN))
def test_the_beginning_of_anything_can_be_looked_at(data: bytes) -> None:
    for length in range(0, min(len(data), 300)):
        identify(data[:length])
