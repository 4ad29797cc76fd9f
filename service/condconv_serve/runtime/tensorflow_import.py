"""Imports TensorFlow without its start-up messages, and without packages that Keras imports but we don't need."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator

from condconv_serve.machine.memory import garbage_collection_paused

# Printed from C++ before any log level is read.
_CHATTER = re.compile(rb"before absl::InitializeLog|oneDNN custom operations are on|MLIR V1 optimization pass")

# Keras imports these wherever they are installed, for its galleries and wrappers, which takes as long as half of
# TensorFlow.
_UNNEEDED_BY_KERAS = ("matplotlib", "pandas", "sklearn")


def import_tensorflow() -> None:
    """Import TensorFlow without its chatter; unless TF_CPP_MIN_LOG_LEVEL says otherwise, it prints warnings and errors.

    Raises:
        ImportError: TensorFlow is not installed; says how to install it.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    with _without_chatter(), _hidden(_UNNEEDED_BY_KERAS), garbage_collection_paused():
        _import()


def _import() -> None:
    try:
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed: pip install 'condconv-serve[cpu]', or [gpu] for CUDA."
        ) from error


@contextlib.contextmanager
def _hidden(packages: Iterable[str]) -> Iterator[None]:
    """Make packages seem not to be installed meanwhile, but for those that have been imported before."""
    absent = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None keeps a module from being found
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back what is written to stderr meanwhile, by any thread, and pass on all but the chatter."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            held.seek(0)
            for line in held:
                if not _CHATTER.search(line):
                    os.write(stderr, line)
            os.close(stderr)
