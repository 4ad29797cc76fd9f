"""Routing by class as tables: CSV for spreadsheets, NPZ for NumPy."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

from condconv_serve.routing.by_class import RoutingByClass
from condconv_serve.routing.output_path import check_output_path
from condconv_serve.routing.provenance import Provenance

DATA_SUFFIXES = (".csv", ".npz")
CLASS_COLUMNS = (
    "class", "images", "block", "expert", "mean", "deviation", "block_share", "block_low", "block_high", "block_p",
    "block_raw_share", "chance",
)  # fmt: skip


def check_data_path(path: Path) -> None:
    """Check early that figures can be written there.

    Raises:
        InvalidParameter: unknown kind of file, or no such directory.
    """
    check_output_path(path, DATA_SUFFIXES, what="figures are")


def with_origin(table: bytes, made_by: Provenance) -> bytes:
    """A CSV with what made it in front, in lines that begin with `#`; line breaks in it are escaped."""
    lines = (f"# {name}: {json.dumps(value, ensure_ascii=False)[1:-1]}" for name, value in made_by.to_json().items())
    return "".join(f"{line}\r\n" for line in lines).encode() + table


def classes_csv(found: RoutingByClass) -> bytes:
    """One line per class, block and expert. Empty where a figure can't be known. UTF-8, text in quotes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(CLASS_COLUMNS)
    effect = found.effect
    for place, block in enumerate(found.layout.blocks):
        columns = (effect.share, effect.low, effect.high, effect.p, effect.raw)
        shares = [_cell(values[place]) for values in columns]
        for number, name in enumerate(found.names):
            for expert in range(found.layout.experts[place]):
                mean, deviation = (float(values[number, place, expert]) for values in (found.mean, found.deviation))
                images = int(found.images[number])
                writer.writerow((name, images, block, expert, mean, _cell(deviation), *shares, effect.chance))
    return text.getvalue().encode()


def classes_npz(found: RoutingByClass, made_by: Provenance) -> bytes:
    """All figures and all images in one file of arrays.

    Returns:
        An NPZ file without pickles, of `N` images and `K` classes. Of the images: `weights` float32
        `[N, blocks, experts]`, NaN where a block has fewer experts than another; `labels` int64 `[N]`, the place of
        each one's class in `classes`; `files` `[N]`. Of the classes: `classes` and `images` `[K]`; `mean` and
        `deviation` `[K, blocks, experts]`. Of the blocks: `blocks`, `share`, `low`, `high`, `p`, `raw_share`,
        `between`, `within`, `entropy`, `[blocks]`, as in `EffectSize`. And `chance`, and `made_by`, a JSON object.
    """
    layout, effect = found.layout, found.effect
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        weights=layout.blanked(found.weights).astype(np.float32),
        labels=found.labels,
        files=np.array(found.files, dtype=np.str_),
        classes=np.array(found.names, dtype=np.str_),
        images=found.images,
        mean=layout.blanked(found.mean),
        deviation=layout.blanked(found.deviation),
        blocks=np.array(layout.blocks, dtype=np.str_),
        share=effect.share,
        low=effect.low,
        high=effect.high,
        p=effect.p,
        raw_share=effect.raw,
        between=effect.between,
        within=effect.within,
        entropy=found.overall.entropy_mean,
        chance=np.array(effect.chance),
        made_by=np.array(json.dumps(made_by.to_json())),
    )
    return buffer.getvalue()


def _cell(value: float) -> float | str:
    return "" if np.isnan(value) else float(value)
