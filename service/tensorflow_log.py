"""Keeps TensorFlow's start-up chatter out of the log, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Printed from C++ before any log level is read.
_CHATTER = re.compile(rb"before absl::InitializeLog|oneDNN custom operations are on|MLIR V1 optimization pass")


def import_tensorflow() -> None:
    """Import TensorFlow without its chatter; unless TF_CPP_MIN_LOG_LEVEL says otherwise, it prints warnings and errors.

    Raises:
        ImportError: TensorFlow is not installed; says how to install it.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    with _without_chatter():
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
