"""Profiles are made of the very rows that a server would make of the same files."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from condconv_serve.domain import Pixels, Preprocessing, Row, ServedModel, Tensors
from condconv_serve.imaging import model_row
from condconv_serve.offline.profile import profile_files
from condconv_serve.routing.profile import profile_of
from condconv_serve.settings import Settings
from condconv_serve.store import Bundle, write_bundle
from tests.contract.fakes import (
    ColourDetector,
    FunctionEngine,
    ShadeEngine,
    detector_info,
    even_layout,
    model_info,
    served_model,
)
from tests.pictures import encode, photo
from tests.unit.store.samples import new_bundle

SIDE = 32


def decoded_elsewhere(data: bytes, left: int, top: int, side: int) -> Pixels:
    """A JPEG decoder that nobody could take for Pillow's."""
    return np.full((side, side, 3), (left + top + len(data)) % 256, np.uint8)


@pytest.mark.tensorflow
@pytest.mark.parametrize("exact", [False, True])
def test_rows_are_those_of_a_server(exact: bool, tmp_path: Path) -> None:
    files = []
    for name in ("coffee", "cat"):
        files.append(tmp_path / f"{name}.jpg")
        files[-1].write_bytes(encode(photo(name, (80, 60)), "JPEG"))
    preprocessing = Preprocessing(transform="official", image_size=SIDE, exact_decoding=exact)
    profile = profile_of(np.zeros((1, 2, 4)), [0], even_layout(2, 4))
    seen: list[Row] = []

    def compute(rows: Row, stream: int) -> Tensors:
        seen.extend(rows)
        return ShadeEngine()(rows.astype(np.uint8))

    def load(bundle: Bundle | None = None, *_: Any, **__: Any) -> ServedModel:
        assert bundle is None or bundle.manifest.routing_profile is None, "what is replaced needn't be readable"
        model = served_model(model_info(preprocessing=preprocessing), FunctionEngine(compute))
        return replace(model, crop_jpeg=decoded_elsewhere if exact else None)

    profiled = profile_files(
        Settings(streams=1),
        write_bundle(tmp_path / "store", new_bundle(routing_profile=profile)),
        files,
        min_class_images=1,
        console=Console(quiet=True),
        load=load,
    )
    assert (profiled.profile.images, profiled.failures) == (2, ())
    expected = [model_row(file.read_bytes(), load(), max_pixels=10**6).row for file in files]
    assert {row.tobytes() for row in seen} == {row.tobytes() for row in expected}
    assert {row.dtype for row in seen} == {np.dtype(np.float32 if exact else np.uint8)}


@pytest.mark.tensorflow
@pytest.mark.parametrize("stream", [0, 1])
def test_one_threads_end_is_that_of_all(stream: int, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(photo("cat", (80, 60)), "JPEG"))
    calls: list[int] = []
    ended = threading.Event()

    def compute(rows: Row, its_stream: int) -> Tensors:
        calls.append(its_stream)
        if its_stream == stream:
            ended.set()
            raise KeyboardInterrupt
        assert ended.wait(60)
        time.sleep(0.05)
        return ShadeEngine()(rows)

    preprocessing = Preprocessing(transform="pillow", image_size=SIDE)
    with pytest.raises(KeyboardInterrupt):
        profile_files(
            Settings(streams=2, max_batch_size=1),
            write_bundle(tmp_path / "store", new_bundle()),
            [tmp_path / "a.jpg"] * 300,
            min_class_images=1,
            console=Console(quiet=True),
            load=lambda *_, **__: served_model(model_info(preprocessing=preprocessing), FunctionEngine(compute)),
        )
    assert len(calls) < 150


@pytest.mark.tensorflow
def test_a_detectors_classes_are_those_that_it_finds(tmp_path: Path) -> None:
    files = []
    for name, colours in (("red", [(255, 0, 0)]), ("both", [(255, 0, 0), (0, 0, 255)]), ("none", [])):
        picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
        for number, colour in enumerate(colours):
            picture[:8, 8 * number : 8 * number + 8] = colour
        files.append(tmp_path / f"{name}.png")
        files[-1].write_bytes(encode(picture, "PNG"))
    profiled = profile_files(
        Settings(streams=1),
        write_bundle(tmp_path / "store", new_bundle()),
        files,
        min_class_images=1,
        console=Console(quiet=True),
        load=lambda *_, **__: served_model(detector_info(), ColourDetector()),
    )
    profile = profiled.profile
    assert profile.images == 3
    assert dict(zip(profile.classes.tolist(), profile.class_images.tolist(), strict=True)) == {0: 2, 2: 1}
