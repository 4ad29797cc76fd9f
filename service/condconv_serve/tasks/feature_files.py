"""Images' features as files: NPZ for NumPy, CSV for spreadsheets, and plain numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ImageResult
from condconv_serve.routing.provenance import Provenance
from condconv_serve.tasks.features import Embedding

EmbeddedImage = ImageResult[Embedding]
CSV_COLUMNS = ("image", "id", "filename", "error")
"""Before `feature_0` and so on."""


def stacked_features(results: Sequence[EmbeddedImage], features: int) -> NDArray[np.float32]:
    """The features of `N` images, float32 `[N, features]`; the row of one that failed is NaN throughout."""
    return _stacked([None if r.prediction is None else r.prediction.features for r in results], features)


def to_bytes(results: Sequence[EmbeddedImage], features: int) -> bytes:
    """The same numbers one after the other, row by row, little-endian."""
    return stacked_features(results, features).astype("<f4", copy=False).tobytes()


def to_npz(results: Sequence[EmbeddedImage], features: int, *, made_by: Provenance) -> bytes:
    """All images in one file of arrays.

    Args:
        results: `N` images.
        features: how many the model has.
        made_by: what made it.

    Returns:
        An NPZ file without pickles, of `N` images: `features` float32 `[N, features]`, NaN for an image that failed;
        `logits` float32 `[N, classes]` likewise, if any image has them; `ids`, `filenames` and `errors` (slugs; empty
        if all is well) `[N]`; and `made_by`, a JSON object.
    """
    arrays: dict[str, Any] = {"features": stacked_features(results, features)}
    if classes := _logits_of(results):
        logits = [None if r.prediction is None else r.prediction.logits for r in results]
        arrays["logits"] = _stacked(logits, classes)
    np.savez(
        buffer := io.BytesIO(),
        **arrays,
        ids=np.array([result.id for result in results], dtype=np.str_),
        filenames=np.array([result.filename or "" for result in results], dtype=np.str_),
        errors=np.array([result.error.slug if result.error else "" for result in results], dtype=np.str_),
        made_by=np.array(json.dumps(made_by.to_json())),
    )
    return buffer.getvalue()


def to_csv(results: Sequence[EmbeddedImage], features: int) -> bytes:
    """One line per image: its names, and a column for each feature, and for each logit if they were asked for.

    A failed image has its error's slug, and no numbers. UTF-8, quoted text.
    """
    names = [f"feature_{number}" for number in range(features)]
    names += [f"logit_{number}" for number in range(_logits_of(results))]
    writer = csv.writer(text := io.StringIO(newline=""), quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow((*CSV_COLUMNS, *names))
    for number, result in enumerate(results):
        start = (number, result.id, result.filename or "", result.error.slug if result.error else "")
        writer.writerow((*start, *(_numbers(result.prediction) if result.prediction else [""] * len(names))))
    return text.getvalue().encode()


def _numbers(embedding: Embedding) -> list[float]:
    logits = [] if embedding.logits is None else embedding.logits.tolist()
    return [*embedding.features.tolist(), *logits]


def _logits_of(results: Sequence[EmbeddedImage]) -> int:
    """How many logits each image has; 0 if they weren't asked for, or all images failed."""
    found = (r.prediction.logits for r in results if r.prediction is not None and r.prediction.logits is not None)
    return next((len(logits) for logits in found), 0)


def _stacked(rows: Sequence[NDArray[np.float32] | None], width: int) -> NDArray[np.float32]:
    found = np.full((len(rows), width), np.nan, np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            found[place] = row
    return found
