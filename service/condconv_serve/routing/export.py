"""Images' routing weights as tables: CSV for spreadsheets, NPZ for NumPy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

import numpy as np

from condconv_serve.domain import ImageResult, RoutedAnswer, RoutingLayout
from condconv_serve.routing.provenance import Provenance

CSV_COLUMNS = ("image", "id", "filename", "class", "probability", "block", "expert", "weight", "error")


def to_csv(results: Sequence[ImageResult[RoutedAnswer]]) -> bytes:
    """One line per image, block and expert; a failed image has one line with its error's slug. UTF-8, quoted text.

    A detector's class is that of the box with the highest score, which stands as its probability.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(CSV_COLUMNS)
    for number, result in enumerate(results):
        start = (number, result.id, result.filename or "")
        if result.prediction is None:
            writer.writerow((*start, "", "", "", "", "", result.error.slug if result.error else ""))
            continue
        best, trace = result.prediction.best, result.prediction.routing
        scored = ("", "") if best is None else (best.index, best.probability)
        for block, weights in trace.by_block().items():
            for expert, weight in enumerate(weights.tolist()):
                writer.writerow((*start, *scored, block, expert, weight, ""))
    return text.getvalue().encode()


def to_npz(results: Sequence[ImageResult[RoutedAnswer]], layout: RoutingLayout, *, made_by: Provenance) -> bytes:
    """All images in one file of arrays.

    Args:
        results: `N` images.
        layout: of the network.
        made_by: what made it.

    Returns:
        An NPZ file without pickles: `routing` float32 `[N, blocks, experts]`, NaN for an image that failed and where a
        block has fewer experts than another; `blocks`;
        `ids`, `filenames` and `errors` (slugs; empty if all is well) `[N]`; `classes` (-1 for one that failed) and
        `probabilities` `[N]` of the most probable class, or of a detector's box with the highest score; and `made_by`,
        a JSON object.
    """
    routing = np.full((len(results), *layout.shape), np.nan, np.float32)
    classes, probabilities = np.full(len(results), -1, np.int64), np.full(len(results), np.nan)
    for number, result in enumerate(results):
        if result.prediction is not None:
            routing[number] = layout.blanked(result.prediction.routing.weights)
            if (best := result.prediction.best) is not None:
                classes[number], probabilities[number] = best.index, best.probability
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        routing=routing,
        blocks=np.array(layout.blocks, dtype=np.str_),
        ids=np.array([result.id for result in results], dtype=np.str_),
        filenames=np.array([result.filename or "" for result in results], dtype=np.str_),
        classes=classes,
        probabilities=probabilities,
        errors=np.array([result.error.slug if result.error else "" for result in results], dtype=np.str_),
        made_by=np.array(json.dumps(made_by.to_json())),
    )
    return buffer.getvalue()
