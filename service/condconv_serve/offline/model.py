"""A model in your own process: ask it about images, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, overload

from condconv_serve.inputs import ImageInput, ImagesInput
from condconv_serve.offline.loaded_model import LoadedModel
from condconv_serve.offline.local_results import detected, embedded, predicted, routed
from condconv_serve.results import ImageDetections, ImageFeatures, ImagePrediction, ImageRouting, OnError
from condconv_serve.tasks.by_task import ByTask
from condconv_serve.tasks.classification import Classify
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.features import Embed


class Model(LoadedModel):
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
            InvalidParameter: `top_k` is less than 1 or more than there are classes, `threshold` is not from 0 to 1, or
                the model is a detector.
            MissingImage: a folder without images, or a pattern that matches none.
            ServiceError: why the image, or with `on_error="raise"` the first one, has no answer.
            TypeError: something is no image. RuntimeError: the model is closed.
        """
        return self._ask(images, _classify(top_k, threshold), predicted, on_error=on_error, progress=progress)

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
        return self._ask_each(images, _classify(top_k, threshold), predicted, on_error=on_error)

    @overload
    def routing(  # type: ignore[overload-overlap]  # a name is an iterable, too
        self,
        images: ImageInput,
        *,
        top_k: int | None = ...,
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        max_detections: int | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> ImageRouting: ...

    @overload
    def routing(
        self,
        images: Iterable[ImageInput],
        *,
        top_k: int | None = ...,
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        max_detections: int | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> list[ImageRouting]: ...

    def routing(
        self,
        images: ImagesInput,
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        on_error: OnError = "keep",
        progress: bool | None = None,
    ) -> ImageRouting | list[ImageRouting]:
        """Show which experts one image is routed to, or many, and what stands out.

        Arguments and errors are those of `predict`, or with a detector those of `detect`, and a result has what their
        results have. Its `routing.weights` is float32 `[blocks, experts]`, 0 to 1; `routing.by_block()` has the weights
        of each block by its name.
        """
        task = _route(top_k, score_threshold, iou_threshold, max_detections)
        return self._ask(images, task, routed, on_error=on_error, progress=progress)

    def routing_iter(
        self,
        images: ImagesInput,
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        on_error: OnError = "keep",
    ) -> Iterator[ImageRouting]:
        """The routing weights of many images; as `predict_iter`."""
        task = _route(top_k, score_threshold, iou_threshold, max_detections)
        return self._ask_each(images, task, routed, on_error=on_error)

    @overload
    def detect(  # type: ignore[overload-overlap]
        self,
        images: ImageInput,
        *,
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        max_detections: int | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> ImageDetections: ...

    @overload
    def detect(
        self,
        images: Iterable[ImageInput],
        *,
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        max_detections: int | None = ...,
        on_error: OnError = ...,
        progress: bool | None = ...,
    ) -> list[ImageDetections]: ...

    def detect(
        self,
        images: ImagesInput,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        on_error: OnError = "keep",
        progress: bool | None = None,
    ) -> ImageDetections | list[ImageDetections]:
        """Find the objects in one image, or in many, with a detector.

        Other arguments and errors are those of `predict`. A result's `objects` have the highest score first; each has
        `label`, `score`, and `box` in pixels of the upright photo.

        Args:
            images: see `Model`.
            score_threshold: only objects with a higher score are returned, 0 to 1; 0.5 if None.
            iou_threshold: of two boxes of a class that overlap by more (intersection over union, 0 to 1), only the one
                with the higher score is returned; 0.5 if None.
            max_detections: how many objects to return at most, those with the highest scores, 1 to 1000; 100 if None.
            on_error: as for `predict`.
            progress: as for `predict`.

        Raises:
            InvalidParameter: a number is impossible, or the model is a classifier.
        """
        task = _detect(score_threshold, iou_threshold, max_detections)
        return self._ask(images, task, detected, on_error=on_error, progress=progress)

    def detect_iter(
        self,
        images: ImagesInput,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        on_error: OnError = "keep",
    ) -> Iterator[ImageDetections]:
        """The objects in many images; as `predict_iter`."""
        return self._ask_each(
            images, _detect(score_threshold, iou_threshold, max_detections), detected, on_error=on_error
        )

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
        return self._ask(images, Embed(logits), embedded, on_error=on_error, progress=progress)

    def features_iter(
        self, images: ImagesInput, *, logits: bool = False, on_error: OnError = "keep"
    ) -> Iterator[ImageFeatures]:
        """The features of many images; as `predict_iter`."""
        return self._ask_each(images, Embed(logits), embedded, on_error=on_error)


def _classify(top_k: int | None, threshold: float | None) -> Classify:
    return Classify(top_k, 0.0 if threshold is None else threshold)


def _detect(score_threshold: float | None, iou_threshold: float | None, max_detections: int | None) -> Detect:
    return Detect(**_given(score_threshold, iou_threshold, max_detections))


def _route(
    top_k: int | None, score_threshold: float | None, iou_threshold: float | None, max_detections: int | None
) -> ByTask:
    classes = {} if top_k is None else {"top_k": top_k}
    return ByTask(classes | _given(score_threshold, iou_threshold, max_detections))


def _given(score_threshold: float | None, iou_threshold: float | None, max_detections: int | None) -> dict[str, Any]:
    """The options of objects that were given."""
    options = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "max_detections": max_detections,
    }
    return {name: value for name, value in options.items() if value is not None}
