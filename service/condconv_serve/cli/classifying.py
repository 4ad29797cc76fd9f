"""Classifies the images that a command was given, and hands each result on as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from condconv_serve.cli.common import INTERRUPTED, read_settings
from condconv_serve.cli.output import SilentProgress, err, into_file, note
from condconv_serve.cli.results import Results
from condconv_serve.domain import ClassifiedImage, ServedModel

PROGRESS_FROM = 8
"""With fewer images than this a progress bar would only flicker."""


def classify(
    arguments: Sequence[str], results: Results, *, model: str | None, model_store: Path | None, top_k: int | None
) -> int:
    """Classify images.

    Args:
        arguments: files, folders, globs, or `-`.
        results: prints them.
        model: `NAME[/VERSION]`; the default model if None.
        model_store: directory of the store, if it was given.
        top_k: classes per image, if it was given.

    Returns:
        The command's exit code: 1 if an image failed, 130 after Ctrl-C.

    Raises:
        ServiceError: an argument, the store or the model is unusable.
    """
    from condconv_serve.offline.bundles import find_bundle
    from condconv_serve.offline.classify import classify_images
    from condconv_serve.offline.files import find_images
    from condconv_serve.store import Catalog

    settings = read_settings(model_store=model_store)
    bundle = find_bundle(settings, Catalog(settings.model_store), model)
    images = find_images(arguments, max_bytes=settings.max_body_bytes, note=note)
    counted = _Counted(results, len(images))
    try:
        with counted:
            classify_images(settings, images, counted, bundle=bundle, top_k=top_k)
    except KeyboardInterrupt:
        results.ended(interrupted=True)
        note(f"interrupted after {counted.done} of {len(images)} images")
        return INTERRUPTED
    results.ended(interrupted=False)
    return int(counted.failed > 0)


class _Counted:
    """Counts results on their way, on a progress bar if that is in nobody's way."""

    def __init__(self, results: Results, total: int) -> None:
        self.done, self.failed = 0, 0
        self._results = results
        columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Results on a terminal are progress enough; and rich must not send what is meant for stdout to stderr.
        shown = err.is_terminal and total >= PROGRESS_FROM and into_file()
        self._progress = SilentProgress(*columns, console=err, redirect_stdout=False, disable=not shown)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Counted:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, model: ServedModel) -> None:
        self._results.started(model)

    def result(self, result: ClassifiedImage) -> None:
        self._results.result(result)
        self.done += 1
        self.failed += result.prediction is None
        self._progress.advance(self._task)
