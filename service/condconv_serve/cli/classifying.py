"""Classifies the images that a command was given, and hands each result on as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv_serve.cli.common import INTERRUPTED, read_settings
from condconv_serve.cli.output import err, into_file, note
from condconv_serve.cli.results import Results


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
    from condconv_serve.offline.files import find_images
    from condconv_serve.offline.interrupts import interrupts_held
    from condconv_serve.offline.local_service import LocalService
    from condconv_serve.offline.progress import ProgressBar
    from condconv_serve.store import Catalog
    from condconv_serve.tasks.classification import Classify

    settings = read_settings(model_store=model_store)
    bundle = find_bundle(settings, Catalog(settings.model_store), model)
    images = find_images(arguments, max_bytes=settings.max_body_bytes, note=note)
    task, done, failed = Classify(top_k), 0, 0
    try:
        with LocalService(settings, bundle, release=False) as service:
            task.check(service.model.info)
            with interrupts_held():
                results.started(service.model)
            # Results on a terminal are progress enough.
            with ProgressBar("classifying", wanted=None if into_file() else False, console=err) as bar:
                for result in service.stream((image, task) for image in images):
                    with interrupts_held():
                        results.result(result)
                        done, failed = done + 1, failed + (result.prediction is None)
                        bar.update(done, len(images))
    except KeyboardInterrupt:
        results.ended(interrupted=True)
        note(f"interrupted after {done} of {len(images)} images")
        return INTERRUPTED
    results.ended(interrupted=False)
    return int(failed > 0)
