"""What `condconv features` prints and writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from condconv_serve.cli.output import err, say
from condconv_serve.cli.results import AnsweringModel, Results
from condconv_serve.routing.class_export import with_origin
from condconv_serve.tasks.feature_files import EmbeddedImage, to_csv, to_npz
from condconv_serve.tasks.features import Embedding


class KeptFeatures:
    """Writes the images of other results to files once all are there, or those that are there after Ctrl-C."""

    def __init__(self, results: Results[Embedding], files: Sequence[Path]) -> None:
        """Print them as `results` does, and write them to `files` (.csv or .npz)."""
        self._results = results
        self._files = files
        self._found: list[EmbeddedImage] = []

    def started(self, model: AnsweringModel) -> None:
        """Remember the model."""
        self._model = model
        self._results.started(model)

    def result(self, result: EmbeddedImage) -> None:
        """Print a result and keep it."""
        self._results.result(result)
        self._found.append(result)

    def ended(self, *, interrupted: bool) -> None:
        """Write the files, if there is an image with features."""
        self._results.ended(interrupted=interrupted)
        first = next((result.prediction for result in self._found if result.prediction is not None), None)
        if first is None:
            return
        made_by, count = self._model.makes(interrupted=interrupted), len(first.features)
        for path in self._files:
            if path.suffix.lower() == ".csv":
                path.write_bytes(with_origin(to_csv(self._found, count), made_by))
            else:
                path.write_bytes(to_npz(self._found, count, made_by=made_by))
            say(f"wrote {path}", console=err)


def print_features(name: str, embedding: Embedding) -> None:
    """Print how many there are: nobody reads a thousand numbers."""
    length = np.linalg.norm(embedding.features.astype(np.float64))
    say((name, "bold"), f"  {len(embedding.features)} features, as a vector of length {length:.3g}")
