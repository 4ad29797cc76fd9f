"""HDF5 files that would end the process that reads them, or never let go of it."""

from __future__ import annotations

import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers import hdf5_trial, keras_file
from condconv_serve.store.importers.hdf5_trial import HDF5Damaged, try_out
from condconv_serve.store.importers.keras_file import read_keras

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def _tried_out(monkeypatch: pytest.MonkeyPatch, _hdf5_files_are_tried_out_in_tests_of_that_only: None) -> None:
    monkeypatch.setattr(keras_file, "try_out", try_out)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "weights.h5"
    with h5py.File(file, "w") as store:
        store.attrs["layer_names"] = ["dense"]
        store.create_group("dense").attrs["weight_names"] = ["dense/kernel:0"]
        store["dense/dense/kernel:0"] = np.ones((3, 2), np.float32)
    return file


def endless(data: bytes) -> bytes:
    """An HDF5 file whose reader never ends: the first text on its heap has an absurd size."""
    damaged = bytearray(data)
    damaged[data.index(b"GCOL") + 24] = 255
    return bytes(damaged)


def test_a_sound_file_is_read(weights: Path) -> None:
    np.testing.assert_array_equal(read_keras(weights, max_bytes=1000)["dense/kernel"], np.ones((3, 2)))


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_file_whose_reader_never_ends_is_refused(
    suffix: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_trial, "TRIAL_SECONDS", 3.0)
    file = tmp_path / f"damaged{suffix}"
    if suffix == ".keras":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model.weights.h5", endless(weights.read_bytes()))
    else:
        file.write_bytes(endless(weights.read_bytes()))
    begun = time.monotonic()
    with pytest.raises(ImportFailed, match=rf"^damaged{suffix} can't be read .* had not ended after 3 s, so it is dam"):
        read_keras(file, max_bytes=100_000)
    assert time.monotonic() - begun < 60


def test_a_file_whose_reader_dies_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dies.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5_trial, "__file__", str(program))
    with tempfile.TemporaryFile() as file, pytest.raises(HDF5Damaged, match="by signal 11, so it is damaged"):
        try_out(file, max_bytes=1000)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_what_python_can_tell_is_told_where_the_file_is_read(size: int, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:size])
    with weights.open("rb") as file:
        try_out(file, max_bytes=1000)
    with pytest.raises(ImportFailed, match=r"^weights\.h5 can't be read as weights of Keras: "):
        read_keras(weights, max_bytes=1000)


def test_arrays_that_will_be_refused_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.h5"
    with h5py.File(file, "w") as store:
        store.attrs["layer_names"] = ["dense"]
        store.create_group("dense").attrs["weight_names"] = ["dense/kernel:0"]
        store.create_dataset("dense/dense/kernel:0", (2**40,), np.float32, chunks=(2**20,))  # takes no room
    with pytest.raises(ImportFailed, match="more than 1000000 bytes"):
        read_keras(file, max_bytes=10**6)
