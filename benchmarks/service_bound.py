"""Prints how long engine and decoder need per row with all cores busy: the bound of `service_load.py`.

`python service_bound.py PHOTO` measures the default model of the store, with the settings in the environment, once for
every line that it reads, and waits quietly in between.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from condconv_serve.bootstrap import Service
from condconv_serve.imaging import model_row
from condconv_serve.offline.throughput import measure
from condconv_serve.settings import Settings

SECONDS = 1.5


def main() -> None:
    """Measure and print seconds of one core per row."""
    settings = Settings()
    service = Service(settings)
    service.load()
    model, plan, data = service.registry.get(), service.plan, Path(sys.argv[1]).read_bytes()

    def decoded(_: int = 0) -> object:
        return model_row(data, model, max_pixels=settings.max_pixels).row

    rows = np.stack([decoded()] * plan.max_batch_size)

    def seconds_per_row(size: int) -> float:
        def compute(stream: int) -> object:
            return model.engine(rows[:size], stream)

        found = measure(compute, callers=plan.streams, rows_per_call=size, seconds=SECONDS)
        return plan.streams / found.rows_per_second

    sizes = sorted({1, min(4, plan.max_batch_size), plan.max_batch_size})
    for _ in sys.stdin:
        decoding = measure(decoded, callers=plan.streams, rows_per_call=1, seconds=SECONDS)
        figures = {
            "engine": min(map(seconds_per_row, sizes)),
            "decode": plan.streams / decoding.rows_per_second,
            "cores": plan.streams,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
