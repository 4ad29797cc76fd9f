import resource

import numpy as np
import pytest

from condconv_serve.store.tensors import load_tensors, parse_tensors, save_tensors
from tests.unit.store.samples import of_float8


def test_round_trip_in_any_memory_layout(tmp_path):
    value = np.arange(24, dtype=np.float32).reshape(4, 6)
    save_tensors({"turned": value.T, "part": value[::2, 1:]}, file := tmp_path / "a.safetensors")
    for read in (load_tensors(file), parse_tensors(file.read_bytes())):
        np.testing.assert_array_equal(read["turned"], value.T)
        np.testing.assert_array_equal(read["part"], value[::2, 1:])


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    """A limit of file sizes stands for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_tensors({"kernel": np.ones(1_000_000, np.float32)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("content", [b"", b"garbage garbage", of_float8()], ids=["empty", "garbage", "float8"])
def test_what_cannot_be_read(content, tmp_path):
    (file := tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"deserializing|of a type"):
        load_tensors(file)
    with pytest.raises(ValueError, match=r"deserializing|of a type"):
        parse_tensors(content)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "a.safetensors")
