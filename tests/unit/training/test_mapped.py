import errno
import os
import sys

import numpy as np
import pytest

from condconv_serve.training.mapped import create_mapped

pytestmark = pytest.mark.tensorflow
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no space is taken")


@on_linux
def test_the_space_is_taken_at_once(tmp_path):
    array = create_mapped(file := tmp_path / "rows.npy", dtype=np.uint8, shape=(3, 1000, 1000))
    assert file.stat().st_blocks * 512 >= 3_000_000
    array[:] = 7
    array.flush()
    assert (np.load(file) == 7).all()


@on_linux
def test_a_full_disk(tmp_path, monkeypatch):
    """It would kill the process if it were noticed at a mapped page."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        create_mapped(tmp_path / "rows.npy", dtype=np.uint8, shape=(10,))
    assert not list(tmp_path.iterdir()), "what is too large leaves no room for anything else"


@on_linux
def test_a_file_system_that_cannot_take_space(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    assert create_mapped(tmp_path / "rows.npy", dtype=np.uint8, shape=(10,)).shape == (10,)
