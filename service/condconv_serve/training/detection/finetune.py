"""Makes a detector of a classifier, or adapts a detector, with your own annotated photos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from condconv_serve.domain import Label, Preprocessing, readable
from condconv_serve.inputs.annotations import Annotations, load_annotations
from condconv_serve.nn.ssd import priors_of, variances_of
from condconv_serve.store import Bundle, read_labels
from condconv_serve.training.checkpoint import RunDirectory
from condconv_serve.training.detection.batches import Anchors, DetectionBatches
from condconv_serve.training.detection.evaluation import DetectorEvaluation, Evaluator
from condconv_serve.training.detection.loss import multibox_loss
from condconv_serve.training.detection.network import (
    Detector,
    check_possible,
    choose_trained,
    detector_of,
    labels_kept,
    trainer_of,
)
from condconv_serve.training.detection.photos import Photos, read_photos, split_photos
from condconv_serve.training.detection.request import EPOCHS, IMAGE_SIZE, LEARNING_RATE, DetectorRequest
from condconv_serve.training.detection.result import TrainedDetector, write_detector
from condconv_serve.training.detection.shapes import fitting_maps
from condconv_serve.training.loop import Counts, Plan, train
from condconv_serve.training.request import Listener
from condconv_serve.training.result import Finished
from condconv_serve.training.run import begin, memory_named

_DETAIL = 1.5
"""Photos are kept so many times as large as the network takes them, since it is shown parts of them."""
_MAX_SIZE = 2048


def finetune_detector(request: DetectorRequest, *, store: Path, listener: Listener) -> Finished[DetectorEvaluation]:
    """Train, and write the new bundle with the weights of the epoch that was best on the validation photos.

    The state is saved after every epoch, and a run can be resumed, as with `condconv_serve.training.finetune`.

    Args:
        request: what to do.
        store: where the new bundle goes.
        listener: is told of the progress.

    Raises:
        DataSetError: photos or annotations are missing, too few or unreadable.
        BundleError: the bundle is unusable, or the version exists already.
        ConfigurationError: what is asked for is impossible, or the run diverges.
        OutOfMemory: the batches are too large.
    """
    parent, version, run = begin(request, store)
    check_possible(parent, experts=request.experts)
    sources = _find(request, parent, listener)
    preprocessing = _preprocessing(request, parent)
    with run.claimed(_options(request, sources), resume=request.resume, restart=request.restart):
        with memory_named(request, image_size=preprocessing.image_size):
            ready = _prepare(request, sources, preprocessing, run, listener)
            history, best = train(_plan(request, ready), run, listener)
        if best == 0 or history[best].validation.ap50 <= 0:
            listener.warning(
                "Nothing was learned: no epoch was better than the start. Try another --learning-rate, more --epochs, "
                "or more photos."
            )
        size = preprocessing.image_size
        trained = TrainedDetector(
            name=request.name,
            version=version,
            method=(
                f"trained to detect on {len(ready.training.rows)} photos of {len(sources.labels)} classes "
                f"({request.train} trained, epoch {best} of {history[-1].number}, batches of {request.batch_size}, "
                f"learning rate {_rate(request):g}, {size} pixels)"
            ),
            parent=parent,
            detector=ready.detector,
            preprocessing=preprocessing,
            labels=sources.labels,
            validation=ready.validation,
            dataset=_name_of_data(request),
            history=history,
            best_epoch=best,
        )
        return write_detector(trained, store=store)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sources:
    """What a run starts from: a bundle, annotated photos that aren't decoded, and the classes."""

    parent: Bundle
    training: Annotations
    validation: Annotations
    labels: tuple[Label, ...]
    keep_classes: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ready:
    """What a run learns from."""

    detector: Detector
    anchors: Anchors
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    training: Photos
    validation: Photos


def _find(request: DetectorRequest, parent: Bundle, listener: Listener) -> _Sources:
    found = load_annotations(request.data, request.annotations)
    _report(found, listener, "annotations")
    known = read_labels(parent)
    if parent.manifest.task == "detection" and labels_kept(found.names, [label.label for label in known]):
        names, labels, keep = [label.label for label in known], tuple(known), True
        found = found.named(names, source=str(request.data))
    else:
        names, keep = list(found.names), False
        labels = tuple(Label(index, name) for index, name in enumerate(names))
    if request.validation_data is None and request.validation_annotations is None:
        training, validation = split_photos(found, share=request.validation_split, seed=request.seed)
    else:
        directory = request.validation_data or request.data
        source = request.validation_annotations
        training = found
        validation = load_annotations(directory, source).named(names, source=str(source or directory))
        _report(validation, listener, "validation annotations")
        if shared := {image.file.resolve() for image in training.images} & {
            image.file.resolve() for image in validation.images
        }:
            listener.warning(
                f"{len(shared)} photos are used both to train and to validate, such as {readable(min(shared).name)}; "
                "the figures will flatter."
            )
    return _Sources(parent=parent, training=training, validation=validation, labels=labels, keep_classes=keep)


def _report(found: Annotations | Photos, listener: Listener, what: str) -> None:
    if found.left_out:
        listener.warning(f"Left out of the {what}: {'; '.join(map(str, found.left_out))}.")


def _preprocessing(request: DetectorRequest, parent: Bundle) -> Preprocessing:
    """A detector's own, or for a classifier whole photos with its pixels' mean and deviation."""
    given = parent.manifest.preprocessing.to_domain()
    if parent.manifest.task == "detection":
        return replace(given, image_size=request.image_size or given.image_size)
    return Preprocessing(
        transform="stretch",
        image_size=request.image_size or IMAGE_SIZE,
        mean=given.mean,
        std=given.std,
        interpolation="bilinear",
    )


def _options(request: DetectorRequest, sources: _Sources) -> dict[str, Any]:
    """What a run depends on, in plain values."""
    given = asdict(request)
    left_out = ("bundle", "data", "annotations", "validation_data", "validation_annotations", "name", "version")
    for name in (*left_out, "resume", "restart", "max_pixels"):
        del given[name]
    return {
        "task": "detection",
        **given,
        "bundle": sources.parent.weights_sha256,
        "data": sources.training.fingerprint(),
        "validation_data": sources.validation.fingerprint(),
    }


def _prepare(
    request: DetectorRequest, sources: _Sources, preprocessing: Preprocessing, run: RunDirectory, listener: Listener
) -> _Ready:
    """Decode the photos, and build the network."""
    size = preprocessing.image_size
    detail = min(math.ceil(_DETAIL * size), _MAX_SIZE) if request.augmentation.crop else size

    def decode(annotations: Annotations, image_size: int, part: str) -> Photos:
        photos = read_photos(
            annotations,
            replace(preprocessing, image_size=image_size),
            run.path / part,
            max_pixels=request.max_pixels,
            progress=listener.decoding,
        )
        if photos.failures:
            listener.unreadable(photos.failures, len(annotations.images))
        _report(photos, listener, f"{part} photos")
        return photos

    training, validation = decode(sources.training, detail, "training"), decode(sources.validation, size, "validation")
    _warn_of_unseen(training, sources.labels, listener)
    detector = detector_of(
        sources.parent,
        classes=len(sources.labels),
        keep_classes=sources.keep_classes,
        image_size=size,
        maps={**fitting_maps(training.objects, image_size=size), "head": request.head},
        experts=request.experts,
        seed=request.seed,
    )
    return _Ready(
        detector=detector,
        anchors=Anchors(priors_of(detector.network), variances_of(detector.network)),
        preprocessing=preprocessing,
        labels=sources.labels,
        training=training,
        validation=validation,
    )


def _warn_of_unseen(photos: Photos, labels: tuple[Label, ...], listener: Listener) -> None:
    seen = {index for objects in photos.objects for index in objects.classes[~objects.crowd].tolist()}
    if unseen := [label.label for label in labels if label.index not in seen]:
        listener.warning(f"No photo to train with shows {', '.join(unseen[:8])}, so it can't be learned.")


def _plan(request: DetectorRequest, ready: _Ready) -> Plan:
    """Choose what learns, and on which batches."""
    detector = ready.detector
    parameters = choose_trained(detector, request.train)
    loss: Callable[[Any, Any], Any] = multibox_loss(detector.spec.scores)
    batches = DetectionBatches(
        rows=ready.training.rows,
        objects=ready.training.objects,
        preprocessing=ready.preprocessing,
        anchors=ready.anchors,
        batch_size=request.batch_size,
        augmentation=request.augmentation,
        seed=request.seed,
    )
    return Plan(
        trainer=trainer_of(detector),
        loss=loss,
        batches=batches,
        validate=Evaluator(
            detector.network,
            ready.validation,
            labels=ready.labels,
            preprocessing=ready.preprocessing,
            anchors=ready.anchors,
            loss=loss,
            batch_size=request.batch_size,
        ),
        read_validation=DetectorEvaluation,
        epochs=request.epochs or EPOCHS,
        learning_rate=_rate(request),
        counts=Counts(
            training=len(ready.training.rows),
            validation=len(ready.validation.rows),
            classes=len(ready.labels),
            parameters=parameters,
        ),
    )


def _rate(request: DetectorRequest) -> float:
    return request.learning_rate or LEARNING_RATE


def _name_of_data(request: DetectorRequest) -> str:
    named = readable((request.validation_data or request.data).name)
    if request.validation_annotations is not None:
        return f"{named}, {readable(request.validation_annotations.name)}"
    return f"{named}, " + (
        "validation data" if request.validation_data else f"{request.validation_split:.0%} held back"
    )
