"""Removes from an environment what only those need who compile against its packages or test them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def unneeded(packages: Path) -> Iterator[Path]:
    """Headers, libclang (which TensorFlow's build declares and nothing imports), and the packages' own tests."""
    yield packages / "tensorflow" / "include"
    yield packages / "clang"
    for name in ("h5py", "matplotlib", "numpy"):
        yield from (packages / name).rglob("tests")


if __name__ == "__main__":
    for packages in Path(sys.argv[1]).glob("lib/python3*/site-packages"):
        for directory in list(unneeded(packages)):
            shutil.rmtree(directory, ignore_errors=True)
        # Symbols that only a debugger would read. Other packages' libraries are small, and some don't survive it.
        libraries = [str(library) for library in (packages / "tensorflow").glob("libtensorflow_*.so.2")]
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
