"""Random banks and programs end no process; see fuzz.py, which also runs with sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from condconv_serve.runtime.kernels import library
from tests.unit.runtime.native_kernels import fuzz


@pytest.mark.usefixtures("native")
def test_random_banks_and_programs_crash_nothing():
    if os.environ.get("SANITIZE_KERNELS"):  # the sanitizers are in this process
        fuzz.run(200)
        return
    command = [sys.executable, "-m", "tests.unit.runtime.native_kernels.fuzz", "120", str(library.LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    made = dict(item.split(": ") for item in done.stdout.strip("{}\n").replace("'", "").split(", "))
    assert all(int(count) >= 10 for count in made.values()), made
