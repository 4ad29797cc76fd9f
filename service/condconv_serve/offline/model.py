"""A model in your own process: ask it about images, without a server."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from condconv_serve.bootstrap import ModelLoader
from condconv_serve.domain import EngineDescription, ImageResult, Label, ModelInfo, Prediction
from condconv_serve.errors import InvalidParameter
from condconv_serve.inputs import GivenImages, ImageInput, ImagesInput
from condconv_serve.offline.local_service import LOADING, LocalService
from condconv_serve.offline.progress import ProgressBar
from condconv_serve.results import ImageFeatures, ImagePrediction, ImageRouting, ModelVersion, OnError, RoutingInsight
from condconv_serve.routing.views import insight_view
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle
from condconv_serve.tasks.classification import Classify
from condconv_serve.tasks.features import Embed, Embedding
from condconv_serve.tasks.task import Task

if TYPE_CHECKING:
    import keras

Answer = TypeVar("Answer")
Result = TypeVar("Result", ImagePrediction, ImageRouting, ImageFeatures)


class Model:
    """One version of a model, loaded into this process; `condconv_serve.load` makes it.

    Its methods take one image or many. One image gives one result, and its error is raised. Many give a list with a
    result for each image, in order; the result of an image that failed has `error`. They are computed in batches, with
    all cores, as a server does, and are read as they are needed. An image is the name of a file, bytes, an open file, a
    PIL image, or an array: uint8, `[height, width]` or `[height, width, channels]` with 1, 3 (RGB) or 4 channels. Many
    are a list or any iterable of them, an array `[N, height, width, channels]`, the name of a folder, or a pattern such
    as `"photos/*.jpg"`. Give any form of photo in any size: it is cropped and resized for the network.

    Any number of threads may ask at once, also while an event loop runs, as in a notebook. Close it, or use it as a
    context manager, to have its memory back at once; else that happens when nothing refers to it any more.
    """

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
        the scale 0 to 255, and `mean` and `std` of `info.preprocessing`. It returns a dictionary: `logits` float32
        `[N, classes]`, and `routing`, by block, float32 `[N, experts]`.

        Raises:
            BundleError: the model's files have gone or have changed.
        """
        from condconv_serve.runtime.loading import load_network

        with LOADING:
            return load_network(open_bundle(self._bundle))

    @overload
    def predict(  # type: ignore[overload-overlap]  # a name is an iterable, too
        self,
        images: ImageInput,
        *,
        top_k: int | None = ...,
        threshold: float | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> ImagePrediction: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageInput],
        *,
        top_k: int | None = ...,
        threshold: float | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> list[ImagePrediction]: ...

    def predict(
        self,
        images: ImagesInput,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        on_error: OnError = "keep",
        progress: bool | None = None,
    ) -> ImagePrediction | list[ImagePrediction]:
        """Classify one image, or many.

        Args:
            images: see `Model`. Type checkers take a lone name for one image, so give them a folder as `[folder]`.
            top_k: how many classes to return, best first; 5, or all if there are fewer, if None.
            threshold: of these, classes with a smaller probability are left out, 0 to 1, perhaps all; none if None.
            on_error: whether an image's error among many is kept in its result, or raised. One image's is raised.
            progress: whether to show a progress bar; None: on a terminal and in a notebook, for 8 images or more.

        Returns:
            One result for one image, else a list, in order; it is empty if no images are given.

        Raises:
            InvalidParameter: `top_k` is less than 1 or more than there are classes, or `threshold` is not from 0 to 1.
            MissingImage: a folder without images, or a pattern that matches none.
            ServiceError: why the image, or with `on_error="raise"` the first one, has no answer.
            TypeError: something is no image. RuntimeError: the model is closed.
        """
        return self._ask(
            images, Classify(top_k, threshold or 0.0), self._predicted, on_error=on_error, progress=progress
        )

    def predict_iter(
        self,
        images: ImagesInput,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        on_error: OnError = "keep",
    ) -> Iterator[ImagePrediction]:
        """Classify many images, and give each result as it comes, in order. Only a few images are read ahead.

        Arguments and errors are those of `predict`. Use it where a list of all results would be too long.
        """
        task = Classify(top_k, threshold or 0.0)
        self._check(task, on_error)
        return self._each(GivenImages(images), task, self._predicted, on_error=on_error)

    @overload
    def routing(  # type: ignore[overload-overlap]  # a name is an iterable, too
        self, images: ImageInput, *, top_k: int | None = ..., on_error: OnError = ..., progress: bool | None = ...
    ) -> ImageRouting: ...

    @overload
    def routing(
        self,
        images: Iterable[ImageInput],
        *,
        top_k: int | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> list[ImageRouting]: ...

    def routing(
        self,
        images: ImagesInput,
        *,
        top_k: int | None = None,
        on_error: OnError = "keep",
        progress: bool | None = None,
    ) -> ImageRouting | list[ImageRouting]:
        """Show which experts one image is routed to, or many, and what stands out.

        Arguments and errors are those of `predict`. A result's `routing.weights` is float32 `[blocks, experts]`, 0 to
        1; `routing.by_block()` has the weights of each block by its name.
        """
        return self._ask(images, Classify(top_k), self._routed, on_error=on_error, progress=progress)

    def routing_iter(
        self, images: ImagesInput, *, top_k: int | None = None, on_error: OnError = "keep"
    ) -> Iterator[ImageRouting]:
        """The routing weights of many images; as `predict_iter`."""
        task = Classify(top_k)
        self._check(task, on_error)
        return self._each(GivenImages(images), task, self._routed, on_error=on_error)

    @overload
    def features(  # type: ignore[overload-overlap]
        self, images: ImageInput, *, logits: bool = ..., on_error: OnError = ..., progress: bool | None = ...
    ) -> ImageFeatures: ...

    @overload
    def features(
        self,
        images: Iterable[ImageInput],
        *,
        logits: bool = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> list[ImageFeatures]: ...

    def features(
        self,
        images: ImagesInput,
        *,
        logits: bool = False,
        on_error: OnError = "keep",
        progress: bool | None = None,
    ) -> ImageFeatures | list[ImageFeatures]:
        """What the classifier reads of one image, or of many: a vector by which images can be compared.

        Other arguments and errors are those of `predict`. A result's `features` is float32 `[features]`.

        Args:
            images: see `Model`.
            logits: whether to return the logits, too: float32 `[classes]`.
            on_error: as for `predict`.
            progress: as for `predict`.

        Raises:
            InvalidParameter: the model has no features.
        """
        return self._ask(images, Embed(logits), self._embedded, on_error=on_error, progress=progress)

    def features_iter(
        self, images: ImagesInput, *, logits: bool = False, on_error: OnError = "keep"
    ) -> Iterator[ImageFeatures]:
        """The features of many images; as `predict_iter`."""
        task = Embed(logits)
        self._check(task, on_error)
        return self._each(GivenImages(images), task, self._embedded, on_error=on_error)

    def close(self) -> None:
        """Release the model's memory; calls that wait get an error. A second time it does nothing."""
        self._service.close()

    def __enter__(self) -> Model:
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
        make: Callable[[ImageResult[Answer]], Result],
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

    def _check(self, task: Task[Answer], on_error: OnError) -> None:
        if on_error not in ("keep", "raise"):
            raise InvalidParameter(f"on_error may be keep or raise, not {on_error!r}.")
        task.check(self.info)

    def _each(
        self,
        given: GivenImages,
        task: Task[Answer],
        make: Callable[[ImageResult[Answer]], Result],
        *,
        on_error: OnError,
    ) -> Iterator[Result]:
        with contextlib.closing(self._service.stream((image, task) for image in given)) as answers:
            for answer in answers:
                result = make(answer)
                if on_error == "raise":
                    result.raise_error()
                yield result

    def _predicted(self, result: ImageResult[Prediction]) -> ImagePrediction:
        found = result.prediction
        if found is None:
            return ImagePrediction(**self._about(result))
        return ImagePrediction(
            **self._about(result),
            timings=found.timings,
            batch_size=found.batch_size,
            classes=found.classes,
            routing=found.routing,
        )

    def _routed(self, result: ImageResult[Prediction]) -> ImageRouting:
        found = result.prediction
        view = None if found is None else insight_view(found, self.info, live=None)
        return ImageRouting(**vars(self._predicted(result)), insight=None if view is None else RoutingInsight.of(view))

    def _embedded(self, result: ImageResult[Embedding]) -> ImageFeatures:
        found = result.prediction
        if found is None:
            return ImageFeatures(**self._about(result))
        return ImageFeatures(
            **self._about(result),
            timings=found.timings,
            batch_size=found.batch_size,
            features=found.features,
            logits=found.logits,
        )

    def _about(self, result: ImageResult[Any]) -> dict[str, Any]:
        return {"id": result.id, "filename": result.filename, "error": result.error, "model": self._version}
