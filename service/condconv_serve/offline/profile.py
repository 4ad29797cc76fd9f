"""Makes reference profiles: a model's routing on your own images."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from condconv_serve.bootstrap import load_model
from condconv_serve.domain import ROUTING, RoutingProfile, Row, ServedModel, rows_of
from condconv_serve.engine_planning import plan_engines
from condconv_serve.errors import BundleError, MissingImage, ServiceError
from condconv_serve.imaging import model_row
from condconv_serve.inputs.files import read_image
from condconv_serve.routing.found import classes_in
from condconv_serve.routing.profile import profile_from
from condconv_serve.routing.tally import Tally
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.settings import Settings
from condconv_serve.store import Bundle, open_bundle

_UNLIMITED = 2**40


@dataclass(frozen=True, slots=True)
class ProfiledFiles:
    """A profile of files' routing, and the files that could not be used with the reason of each."""

    profile: RoutingProfile
    failures: tuple[tuple[Path, ServiceError], ...]


def profile_files(
    settings: Settings,
    bundle: Path,
    files: Sequence[Path],
    *,
    min_class_images: int,
    console: Console,
    load: ModelLoader | None = None,
) -> ProfiledFiles:
    """Make a reference profile of a bundle's routing over files.

    Args:
        settings: as for a server.
        bundle: the bundle's directory.
        files: images.
        min_class_images: images that a class needs for a profile of its own.
        console: where a progress bar goes.
        load: makes an engine of a bundle; `load_model` if None.

    Raises:
        BundleError: the bundle is unusable, or its network static.
        MissingImage: none of the files could be used.
    """
    plan = plan_engines(settings)
    model = (load or load_model)(_without_profile(open_bundle(bundle)), plan)
    layout = model.info.routing
    if not layout:
        raise BundleError(f"{model.name}/{model.version} is a static network, without routing.")
    chunks = [files[start : start + plan.max_batch_size] for start in range(0, len(files), plan.max_batch_size)]
    failures: list[tuple[Path, ServiceError]] = []
    weights: list[NDArray[np.generic]] = []
    progress = Progress(TextColumn("profiling"), BarColumn(), MofNCompleteColumn(), console=console)

    given_up = threading.Event()

    def count(stream: int) -> Tally:
        tally = Tally(layout, class_bytes=_UNLIMITED)
        for chunk in chunks[stream :: plan.streams]:
            if given_up.is_set():
                break
            rows = [row for file in chunk if (row := _row(file, model, settings, failures)) is not None]
            if rows:
                output = model.engine(np.stack(rows), stream)
                classes = [classes_in(row) for row in rows_of(output)]
                tally.merge(Tally.of(output[ROUTING], classes, layout, class_bytes=_UNLIMITED))
                weights.append(output[ROUTING])
            progress.advance(task, len(chunk))
        return tally

    with progress, ThreadPoolExecutor(plan.streams) as threads:
        task = progress.add_task("", total=len(files))
        try:
            counting = [threads.submit(count, stream) for stream in range(plan.streams)]
            for future in as_completed(counting):  # whichever fails first
                future.result()
        except BaseException:  # Ctrl-C, or an engine that failed; the executor waits for its threads
            given_up.set()
            raise
    total, *others = [future.result() for future in counting]
    for tally in others:
        total.merge(tally)
    if not total.count:
        raise MissingImage(f"None of the {len(files)} files could be used; the first one: {failures[0][1]}")
    return ProfiledFiles(
        profile_from(total, np.concatenate(weights), min_class_images=min_class_images),
        tuple(sorted(failures, key=lambda failure: failure[0])),
    )


def _without_profile(bundle: Bundle) -> Bundle:
    """The bundle without the profile that is about to be replaced: that one needn't be readable."""
    manifest = bundle.manifest
    files = {name: file for name, file in manifest.files.items() if name != manifest.routing_profile}
    return replace(bundle, manifest=manifest.model_copy(update={"files": files}))


def _row(file: Path, model: ServedModel, settings: Settings, failures: list[tuple[Path, ServiceError]]) -> Row | None:
    """A file's row for the network, the same as a server's; None if it can't be used, which is noted."""
    try:
        return model_row(read_image(file, settings.max_body_bytes), model, max_pixels=settings.max_pixels).row
    except ServiceError as error:
        failures.append((file, error))
        return None
