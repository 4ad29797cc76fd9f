"""Where rows lie in their photos: a green rectangle is drawn, found in the row, and must lie where it was drawn."""

from __future__ import annotations

import functools
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from condconv_serve.domain import PixelSource, Placement, Preprocessing
from condconv_serve.imaging import SufficientSize, decode, decode_photo, make_row, place_row, sufficient_size, transform
from condconv_serve.inputs.given import images_of
from tests.contract.fakes import model_info, served_model
from tests.pictures import encode, jpeg, oriented

SIZE = 48
GREY, GREEN = 90, (90, 250, 90)
TRANSFORMS: dict[str, dict[str, Any]] = {
    "official": {"transform": "official", "crop_padding": 6},
    "pillow": {"transform": "pillow", "crop_padding": 11},
    "central": {"transform": "central", "interpolation": "bilinear"},
    "stretch": {"transform": "stretch", "interpolation": "bilinear"},
    "letterbox": {"transform": "letterbox", "interpolation": "bilinear"},
    "asymmetric letterbox": {"transform": "letterbox", "interpolation": "asymmetric"},
}
SHAPES = {"small": (70, 61), "wide": (900, 205), "tall": (205, 903), "huge": (809, 603), "huge and wide": (2003, 421)}


def preprocessing(name: str, **changes: Any) -> Preprocessing:
    return Preprocessing(**{"image_size": SIZE, **TRANSFORMS[name], **changes})


@dataclass(frozen=True)
class Drawn:
    """An upright photo with a rectangle that no mirroring leaves where it is; inside of every crop."""

    width: int
    height: int

    @property
    def box(self) -> NDArray[np.int64]:
        """Its edges: left, top, right, bottom."""
        short = min(self.width, self.height)
        left, top = self.width // 2 - short // 4, self.height // 2 - short // 8
        return np.array([left, top, left + short * 3 // 5, top + short * 2 // 5])

    def pixels(self) -> NDArray[np.uint8]:
        photo = np.full((self.height, self.width, 3), GREY, np.uint8)
        left, top, right, bottom = self.box
        photo[top:bottom, left:right] = GREEN
        return photo


@functools.cache
def stored(shape: str, orientation: int, file_format: str = "JPEG") -> bytes:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "AVIF": {"quality": 95, "speed": 10}}
    return oriented(Drawn(*SHAPES[shape]).pixels(), orientation, file_format, **options.get(file_format, {}))


def found(row: NDArray[Any], placement: Placement) -> NDArray[np.float64]:
    """The rectangle's edges in pixels of the photo, more exact than one pixel of the row."""
    green = np.clip(row[..., 1].astype(float) - row[..., 0], 0, None)
    edges = []
    for axis, start, length in ((0, placement.left, placement.width), (1, placement.top, placement.height)):
        profile = green.sum(axis=axis)
        extent = profile.sum() / np.median(profile[profile > profile.max() / 2])
        centre = (profile * (np.arange(SIZE) + 0.5)).sum() / profile.sum()
        edges.append(start + (centre + np.array([-extent, extent]) / 2) * length / SIZE)
    (left, right), (top, bottom) = edges
    return np.array([left, top, right, bottom])


def check(row: NDArray[Any], placement: Placement, shape: tuple[int, int], *, share: float) -> None:
    """The rectangle must lie where it was drawn, to this share of the row's pixels, and half a pixel of the photo."""
    assert (placement.photo_width, placement.photo_height) == shape
    error = np.abs(found(row, placement) - Drawn(*shape).box)
    allowed = np.array([placement.width, placement.height] * 2) / SIZE * share + 0.5
    assert (error <= allowed).all(), (error, allowed)


def tolerance(name: str) -> float:
    """The transforms of TensorFlow 1 don't antialias, and are off by half a pixel of the row."""
    return 1 if name in ("official", "asymmetric letterbox") else 0.12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", TRANSFORMS)
def test_reduced_and_turned_photos(name: str, orientation: int) -> None:
    """A photo of 809 x 603 is decoded in squares of 8, which reach 7 and 5 pixels beyond its edges."""
    made = make_row(stored("huge", orientation), preprocessing(name), max_pixels=10**7)
    assert made.placement is not None
    check(made.row, made.placement, SHAPES["huge"], share=tolerance(name))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"huge"}))
@pytest.mark.parametrize("name", TRANSFORMS)
def test_photos_of_any_shape(name: str, shape: str, orientation: int) -> None:
    made = make_row(stored(shape, orientation), preprocessing(name), max_pixels=10**7)
    assert made.placement is not None
    check(made.row, made.placement, SHAPES[shape], share=tolerance(name))


@pytest.mark.parametrize(
    ("file_format", "orientation"),
    [*itertools.product(["PNG", "WEBP", "TIFF", "AVIF"], [1, 3, 8]), ("GIF", 1), ("BMP", 1)],
)
def test_other_formats(file_format: str, orientation: int) -> None:
    made = make_row(stored("small", orientation, file_format), preprocessing("stretch"), max_pixels=10**7)
    assert made.placement is not None
    check(made.row, made.placement, SHAPES["small"], share=0.12)


def test_the_exact_crop_of_a_jpeg() -> None:
    def crop(data: bytes, left: int, top: int, side: int) -> NDArray[np.uint8]:
        return decode(data, max_pixels=10**7)[top : top + side, left : left + side]

    exact = preprocessing("official", exact_decoding=True)
    for shape in ("huge", "wide", "tall"):
        made = make_row(stored(shape, 1), exact, max_pixels=10**7, crop_jpeg=crop)
        assert made.placement is not None
        check(made.row, made.placement, SHAPES[shape], share=1)
        assert made.placement == make_row(stored(shape, 1), exact, max_pixels=10**7).placement


def test_only_the_official_transform_is_cropped_by_another_decoder() -> None:
    def crop(*_: Any) -> None:
        pytest.fail("called")

    for name in sorted(set(TRANSFORMS) - {"official"}):
        made = make_row(stored("small", 1), preprocessing(name, exact_decoding=True), max_pixels=10**7, crop_jpeg=crop)
        assert made.row.dtype == (np.float32 if name == "asymmetric letterbox" else np.uint8)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_arrays_and_pillow_images_have_a_placement_too(name: str) -> None:
    served = served_model(model_info(preprocessing=preprocessing(name)))
    for given in (Drawn(*SHAPES["wide"]).pixels(), Image.open(io.BytesIO(stored("wide", 6)))):
        (image,) = images_of(given, 0)
        source = image.read(served, max_bytes=10**7)
        assert isinstance(source, PixelSource)
        assert source.placement is not None
        check(source.values, source.placement, SHAPES["wide"], share=tolerance(name))


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (3, 2), (60_001, 1), (1, 60_001), (30_001, 9)])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_extreme_shapes(name: str, shape: tuple[int, int], file_format: str) -> None:
    """Rows of the photo's only colour, which cover all of it, or its middle."""
    data = encode(Image.new("RGB", shape, (200, 40, 40)), file_format)
    made = make_row(data, preprocessing(name), max_pixels=10**7)
    place = made.placement
    assert place is not None
    assert (place.photo_width, place.photo_height) == shape
    whole = name in ("stretch", "letterbox", "asymmetric letterbox")
    beyond = 7 if file_format == "JPEG" else 0  # of the last squares of 8
    if whole:
        assert (place.left, place.top) == (0, 0)
        assert place.width >= shape[0]
        assert place.height >= shape[1]
    else:
        assert 0 <= place.left <= place.left + place.width <= shape[0] + beyond
        assert 0 <= place.top <= place.top + place.height <= shape[1] + beyond
    # What lies in the photo has its colour.
    x = min(SIZE - 1, int(SIZE * shape[0] / place.width / 2))
    y = min(SIZE - 1, int(SIZE * shape[1] / place.height / 2))
    assert abs(float(made.row[y, x, 0]) - 200) <= 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's figures of memory")
@pytest.mark.parametrize("interpolation", ["lanczos", "asymmetric"])
@pytest.mark.parametrize("name", ["stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(1, 5_000_000), (5_000_000, 1)])
def test_very_long_photos_take_little_memory(shape: tuple[int, int], name: str, interpolation: str) -> None:
    photo = Image.new("RGB", shape, (200, 40, 40))
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    row = transform(photo, preprocessing(name, interpolation=interpolation))
    assert memory("VmHWM") - before < 32 * 2**20
    assert abs(float(row[0, 0, 0]) - 200) <= 1


def test_an_edge_in_a_very_long_photo() -> None:
    photo = np.full((2, 80_001, 3), GREY, np.uint8)
    photo[:, 40_000:] = GREEN
    for name in ("stretch", "letterbox"):
        row = transform(photo, preprocessing(name))
        green = row[0, :, 1].astype(float) - row[0, :, 0]
        assert SIZE - green.sum() / 160 == pytest.approx(SIZE / 2, abs=0.02)


def test_sufficient_size() -> None:
    side = 68  # 1.4 lines for each of 48
    assert sufficient_size(preprocessing("stretch")) == SufficientSize(short=side)
    assert sufficient_size(preprocessing("letterbox")) == SufficientSize(long=side)
    for name in TRANSFORMS:
        assert sufficient_size(preprocessing(name, exact_decoding=True)) is None


@pytest.mark.parametrize(
    ("name", "size", "reduced"),
    [
        ("stretch", (809, 603), (102, 76)),
        ("stretch", (3203, 421), (801, 106)),  # the short side needs its lines, too
        ("stretch", (3203, 135), (3203, 135)),
        ("letterbox", (3203, 421), (401, 53)),  # the short side needs no more lines than the long one
        ("letterbox", (135, 50), (135, 50)),
        ("letterbox", (136, 50), (68, 25)),
    ],
)
def test_reduction(name: str, size: tuple[int, int], reduced: tuple[int, int]) -> None:
    photo = decode_photo(
        jpeg(Image.new("RGB", size, "gray")), max_pixels=10**7, sufficient=sufficient_size(preprocessing(name))
    )
    assert photo.image.size == reduced


@pytest.mark.parametrize("orientation", range(1, 9))
def test_where_reduced_pixels_lie(orientation: int) -> None:
    """Whole squares of 8 from the stored photo's left upper corner."""
    data = stored("huge", orientation)
    placement = decode_photo(data, max_pixels=10**7, sufficient=SufficientSize(short=70)).placement
    assert (placement.photo_width, placement.photo_height) == (809, 603)
    assert (placement.width, placement.height) == (816, 608)
    assert placement.left == (-7 if orientation in (2, 3, 6, 7) else 0)
    assert placement.top == (-5 if orientation in (3, 4, 7, 8) else 0)


def test_an_orientation_that_is_no_whole_number_says_nothing() -> None:
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\x06\0\0\0\x01"  # 6 / 1
    photo = decode_photo(
        jpeg(Drawn(*SHAPES["huge"]).pixels(), exif=block), max_pixels=10**7, sufficient=SufficientSize(short=70)
    )
    assert photo.image.size == (102, 76)
    assert (photo.placement.photo_width, photo.placement.photo_height) == SHAPES["huge"]
    assert (photo.placement.left, photo.placement.top) == (0, 0)


def test_a_letterbox_keeps_the_shape() -> None:
    row = transform(Drawn(200, 100).pixels(), preprocessing("letterbox"))
    assert (row[24:] == 0).all()
    assert row[:24].all()
    place = place_row(preprocessing("letterbox"), width=200, height=100)
    assert (place.width, place.height) == (200, 200)


def memory(what: str) -> int:
    """One of the kernel's figures about this process, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what + ":"))
    return 1024 * int(line.split()[1])
