"""A version of a model that was loaded into this process: what it is, how it is asked, and how it ends."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from condconv_serve.domain import EngineDescription, ImageResult, Label, ModelInfo
from condconv_serve.errors import InvalidParameter
from condconv_serve.inputs import GivenImages, ImagesInput
from condconv_serve.offline.local_service import LOADING, LocalService
from condconv_serve.offline.progress import ProgressBar
from condconv_serve.results import ForImage, ModelVersion, OnError
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle
from condconv_serve.tasks.task import Task

if TYPE_CHECKING:
    import keras

Answer = TypeVar("Answer")
Result = TypeVar("Result", bound=ForImage)


class LoadedModel:
    """What `Model` is, but for what one may ask it."""

    def __init__(self, bundle: Path, settings: Settings, *, load: ModelLoader | None = None) -> None:
        """Load a version; `condconv_serve.load` calls this.

        Args:
            bundle: its directory.
            settings: as for a server.
            load: makes an engine of a bundle; the usual one if None.

        Raises:
            BundleError: the version is damaged, or doesn't fit. ConfigurationError: this machine lacks what the
                settings ask for.
        """
        self._bundle = bundle
        self._service = LocalService(settings, bundle, load=load)
        self._version = ModelVersion(self.name, self.version)
        # At the end of the process the service closes by itself, and is waited for.
        weakref.finalize(self, self._service.stop).atexit = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self._service.model.name

    @property
    def version(self) -> str:
        """The version."""
        return self._service.model.version

    @property
    def info(self) -> ModelInfo:
        """What the model is: manifest, preprocessing, outputs, routing layout, cost, model card."""
        return self._service.model.info

    @property
    def labels(self) -> tuple[Label, ...]:
        """The names of the classes, by index."""
        return tuple(self.info.labels)

    @property
    def computed_by(self) -> EngineDescription:
        """What computes it, in which precision, and why."""
        return self._service.model.computed_by

    @cached_property
    def network(self) -> keras.Model:
        """The Keras model, built when you first ask for it. It computes on its own, apart from `predict`.

        It takes float32 `[N, image_size, image_size, 3]`, pixels that are normalised: `(x - mean) / std`, with `x` on
        the scale 0 to 255, and `mean` and `std` of `info.preprocessing`. It returns a dictionary: `routing`, by block,
        float32 `[N, experts]`, and a classifier's `logits`, float32 `[N, classes]`, or a detector's candidates before
        overlapping ones are left out: `boxes`, float32 `[N, anchors, 4]`, `ymin, xmin, ymax, xmax`, where 0 to 1 is the
        input, and `scores`, float32 `[N, anchors, classes]`, probabilities.

        Raises:
            BundleError: the model's files have gone or have changed.
        """
        from condconv_serve.runtime.loading import load_network

        with LOADING:
            return load_network(open_bundle(self._bundle))

    def close(self) -> None:
        """Release the model's memory; calls that wait get an error. A second time it does nothing."""
        self._service.close()

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Say what to do instead of copying it.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A loaded model can't be copied, or sent to another process. Call condconv_serve.load there, too; threads "
            "may share one."
        )

    def __repr__(self) -> str:
        """Which model it is, and what computes it."""
        return f"<Model {self._version}, computed by {self.computed_by}>"

    def _ask(
        self,
        images: ImagesInput,
        task: Task[Answer],
        make: Callable[[ImageResult[Answer], ModelInfo], Result],
        *,
        on_error: OnError,
        progress: bool | None,
    ) -> Result | list[Result]:
        self._check(task, on_error)
        given, results = GivenImages(images), list[Result]()
        with ProgressBar(f"{self._version}", wanted=progress) as bar:
            for result in self._each(given, task, make, on_error="keep" if given.alone else on_error):
                results.append(result)
                bar.update(len(results), given.total)
        if not given.alone:
            return results
        if results[0].error is not None:
            raise results[0].error
        return results[0]

    def _ask_each(
        self,
        images: ImagesInput,
        task: Task[Answer],
        make: Callable[[ImageResult[Answer], ModelInfo], Result],
        *,
        on_error: OnError,
    ) -> Iterator[Result]:
        self._check(task, on_error)  # now, not when the first result is asked for
        return self._each(GivenImages(images), task, make, on_error=on_error)

    def _check(self, task: Task[Answer], on_error: OnError) -> None:
        if on_error not in ("keep", "raise"):
            raise InvalidParameter(f"on_error may be keep or raise, not {on_error!r}.")
        task.check(self.info)

    def _each(
        self,
        given: GivenImages,
        task: Task[Answer],
        make: Callable[[ImageResult[Answer], ModelInfo], Result],
        *,
        on_error: OnError,
    ) -> Iterator[Result]:
        with contextlib.closing(self._service.stream((image, task) for image in given)) as answers:
            for answer in answers:
                result = make(answer, self.info)
                if on_error == "raise":
                    result.raise_error()
                yield result
