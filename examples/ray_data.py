"""Answers a folder of photos on a Ray cluster, and writes a folder of Parquet files.

    pip install 'condconv-serve[cpu]' 'ray[data]'
    python examples/ray_data.py /photos results --server http://127.0.0.1:8000

Photos are listed, read, sent and written by tasks on all machines of the cluster, so they must lie where each of these
can read them. With `--server` a running server computes: one process, many replicas behind one address, or Ray Serve.
Without it each actor loads the model and computes itself, `--actors` of them.

Ray repeats tasks whose machine fails. A job that is stopped begins anew. `condconv predict --output` goes on where it
was, on one machine or with `--shard` on several (docs/batch-jobs.md).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

IMAGES = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "heic", "heif", "hif"]
# Files of one folder must agree on types, also those in which no photo has failed, or all have.
SCHEMA = pa.schema(
    {"path": pa.string(), "model": pa.string(), "label": pa.string(), "probability": pa.float64(), "error": pa.string()}
)


class Answer:
    """Adds columns of answers to a batch of photos. Each actor has one, with its own client or its own model."""

    def __init__(self, server: str | None, model: str | None, patience: float) -> None:
        """Connect to the server, or load the model."""
        name, _, version = (model or "").partition("/")
        self._options: dict[str, Any] = {"top_k": 1}
        if server is None:
            from condconv_serve import load

            self._ask = load(model).predict
        else:
            from condconv_serve import Client

            # A server that is busy or restarts is asked again, as Retry-After says, for as long as patience lasts.
            self._ask = Client(server, timeout=patience, retries=10**6).predict
            self._options |= {"model": name or None, "version": version or None}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        """Answer `bytes`; a photo that fails has an error in place of a label."""
        results = self._ask(list(batch["bytes"]), **self._options)
        best = [result.classes[0] if result.classes else None for result in results]
        columns = {
            "path": list(batch["path"]),
            "model": [str(result.model) if result.model else None for result in results],
            "label": [one.label if one else None for one in best],
            "probability": [one.probability if one else None for one in best],
            "error": [result.error.slug if result.error else None for result in results],
        }
        return pa.table(columns, schema=SCHEMA)


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description="Answer a folder of photos with Ray Data.")
    parser.add_argument("photos", type=Path, help="folder, with those below it")
    parser.add_argument("output", type=Path, help="folder for Parquet files; it must not be there yet")
    parser.add_argument("--server", help="ask this server; otherwise each actor computes")
    parser.add_argument("--model", help="NAME/VERSION; name it for long jobs, since the default may change")
    parser.add_argument("--actors", type=int, default=2, help="requests under way at once, or models loaded")
    parser.add_argument("--batch-size", type=int, default=16, help="photos per request")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait for a busy server")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} is there already; results of two jobs would be mixed")
    # An actor that only sends needs little of a core; one that computes needs a whole one.
    cores = 0.25 if options.server else 1.0
    answered = ray.data.read_binary_files(
        os.fspath(options.photos.absolute()), include_paths=True, file_extensions=IMAGES
    ).map_batches(
        Answer,
        fn_constructor_args=(options.server, options.model, options.patience),
        batch_size=options.batch_size,
        num_cpus=cores,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
    )
    answered.write_parquet(os.fspath(options.output.absolute()))
    written = ray.data.read_parquet(os.fspath(options.output.absolute()), columns=["error"])
    failed = written.filter(lambda row: row["error"] is not None).count()
    print(f"{written.count()} photos, {failed} failed")


if __name__ == "__main__":
    main()
