"""The real server with the real engine, which fails at pictures of certain colours, or while a file says so.

Run as `python -m tests.fault.faulty_server serve`; the environment variable FAULT_FILE names the file.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from condconv_serve import bootstrap
from condconv_serve.cli import app
from condconv_serve.domain import Engine, Row, ServedModel, Tensors

POISON = (255, 0, 255)
"""A picture of this colour makes its batch raise."""
HANG = (0, 255, 255)
"""A picture of this colour makes its batch hang."""


class FaultyEngine:
    """Wraps an engine."""

    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine = engine
        self._file = file

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        """Compute, or fail as the file says: `broken`, `slow SECONDS`, `memory ROWS`."""
        fault, *number = self._file.read_text().split() or [""]
        if fault == "broken" or _any_of(rows, POISON):
            raise RuntimeError("cannot compute with /secret/path")
        if _any_of(rows, HANG):
            time.sleep(3600)
        if fault == "memory" and len(rows) > int(number[0]):
            import tensorflow as tf

            from condconv_serve.runtime.tensorflow_engine import reporting_memory

            with reporting_memory():
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor")
        if fault == "slow":
            time.sleep(float(number[0]))
        return self._engine(rows, stream)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def _any_of(rows: Row, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(rows[:, 100, 100].astype(int) - colour).max(axis=1) <= 2).any())


def main() -> None:
    """Serve."""
    load = bootstrap.load_model
    file = Path(os.environ["FAULT_FILE"])

    def load_faulty(*arguments: object, **options: object) -> ServedModel:
        if file.read_text() == "hanging load":
            time.sleep(3600)
        model = load(*arguments, **options)  # type: ignore[arg-type]
        return replace(model, engine=FaultyEngine(model.engine, file))

    bootstrap.load_model = load_faulty
    app()


if __name__ == "__main__":
    main()
