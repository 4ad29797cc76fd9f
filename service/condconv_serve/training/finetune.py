"""Adapts a bundle to your own images, with their classes or with a teacher, and makes a new bundle of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import LOGITS, Label, Preprocessing, readable
from condconv_serve.domain.manifest import OWN_NETWORK
from condconv_serve.errors import ConfigurationError, DataSetError
from condconv_serve.runtime.loading import load_network
from condconv_serve.store import Bundle, open_bundle, read_labels
from condconv_serve.training.answers import answers_of
from condconv_serve.training.batches import Selection
from condconv_serve.training.checkpoint import RunDirectory
from condconv_serve.training.dataset import ImageFiles, Rows, find_labelled, find_unlabelled, read_rows, split
from condconv_serve.training.evaluation import Evaluation
from condconv_serve.training.loop import train
from condconv_serve.training.material import Material, failure, plan_training
from condconv_serve.training.network import with_classes
from condconv_serve.training.request import FinetuneRequest, Listener, with_defaults
from condconv_serve.training.result import Finished, Trained, write_result
from condconv_serve.training.run import begin, memory_named


def finetune(request: FinetuneRequest, *, store: Path, listener: Listener) -> Finished[Evaluation]:
    """Train, and write the new bundle with the weights of the epoch that was best on the validation images.

    After every epoch the state is saved in a hidden folder of the store. A run that was interrupted, even killed, goes
    on from there with `resume`, and sees the same batches that it would have seen.

    Args:
        request: what to do.
        store: where the new bundle goes.
        listener: is told of the progress.

    Raises:
        DataSetError: the images are missing, too few or unreadable.
        BundleError: a bundle is unusable, or the version exists already.
        ConfigurationError: what is asked for is impossible, or the run diverges.
        OutOfMemory: the batches are too large.
    """
    request = with_defaults(request)
    parent, version, run = begin(request, store)
    if parent.manifest.task != "classification":
        raise ConfigurationError(
            f"{parent.manifest.name} is a model for {parent.manifest.task}, which learns from annotated photos."
        )
    teacher = None if request.teacher is None else open_bundle(request.teacher)
    sources = _find_images(request, parent, teacher)
    image_size = request.image_size or parent.manifest.preprocessing.image_size
    with run.claimed(_options(request, sources), resume=request.resume, restart=request.restart):
        with memory_named(request, image_size=image_size):
            material = _prepare(request, sources, run, listener)
            history, best = train(plan_training(request, material, run, listener), run, listener)
        if (failed := failure(history, best, material)) is not None:
            listener.warning(failed)
        trained = Trained(
            name=request.name,
            version=version,
            method=_method(request, sources, images=len(material.images), epoch=f"{best} of {history[-1].number}"),
            parent=parent,
            material=material,
            classes_known=teacher is None or request.validation_data is not None,
            dataset=f"{readable((request.validation_data or request.data).name)}, "
            + ("validation data" if request.validation_data else f"{request.validation_split:.0%} held back"),
            history=history,
            best_epoch=best,
        )
        return write_result(trained, store=store)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """What a run starts from: bundles, images that are found but not decoded, and the classes.

    `validation` are the images to validate with if they are given, `keep_head` says whether the classes are those of
    the parent.
    """

    parent: Bundle
    teacher: Bundle | None
    images: ImageFiles
    validation: ImageFiles | None
    labels: tuple[Label, ...]
    keep_head: bool


def _find_images(request: FinetuneRequest, parent: Bundle, teacher: Bundle | None) -> _Sources:
    known = read_labels(parent)
    if teacher is not None:
        if [label.label for label in read_labels(teacher)] != [label.label for label in known]:
            raise ConfigurationError(
                f"The teacher {teacher.manifest.name} has other classes than {parent.manifest.name}."
            )
        validation = None
        if request.validation_data is not None:
            validation = find_labelled(request.validation_data, names=_folder_names(known, request.validation_data))
        return _Sources(
            parent=parent,
            teacher=teacher,
            images=find_unlabelled(request.data),
            validation=validation,
            labels=known,
            keep_head=True,
        )
    images = find_labelled(request.data)
    for names in ([label.label for label in known], [label.synset for label in known]):
        if set(images.names) == set(names):
            images = find_labelled(request.data, names=[str(name) for name in names])
            labels, keep = known, True
            break
    else:
        labels, keep = tuple(Label(index, name) for index, name in enumerate(images.names)), False
    validation = None if request.validation_data is None else find_labelled(request.validation_data, names=images.names)
    return _Sources(parent=parent, teacher=None, images=images, validation=validation, labels=labels, keep_head=keep)


def _folder_names(labels: tuple[Label, ...], directory: Path) -> list[str]:
    """How a data set's folders call the classes: by their synsets if one of them is one, else by their labels."""
    synsets = [label.synset or label.label for label in labels]
    folders = {child.name for child in directory.iterdir()} if directory.is_dir() else set()
    return synsets if folders & set(synsets) else [label.label for label in labels]


def _options(request: FinetuneRequest, sources: _Sources) -> dict[str, Any]:
    """What a run depends on, in plain values."""
    given = asdict(request)
    for name in ("bundle", "data", "teacher", "validation_data", "name", "version", "resume", "restart", "max_pixels"):
        del given[name]
    return {
        **given,
        "bundle": sources.parent.weights_sha256,
        "teacher": None if sources.teacher is None else sources.teacher.weights_sha256,
        "data": sources.images.fingerprint(),
        "validation_data": None if sources.validation is None else sources.validation.fingerprint(),
    }


def _prepare(request: FinetuneRequest, sources: _Sources, run: RunDirectory, listener: Listener) -> Material:
    """Decode the images, ask the teacher, and build the network."""
    parent, teacher, validation = sources.parent, sources.teacher, sources.validation
    preprocessing = parent.manifest.preprocessing.to_domain()
    own = parent.manifest.architecture.name == OWN_NETWORK
    if request.image_size is not None and request.image_size != preprocessing.image_size:
        if own:
            raise ConfigurationError(
                f"The network of {parent.manifest.name} takes {preprocessing.image_size} pixels; only registered "
                "architectures come in every size."
            )
        preprocessing = replace(preprocessing, image_size=request.image_size)
    decode = _decoder(request, run.path, listener)
    rows = decode(sources.images, preprocessing, "training")
    held = None if validation is None else decode(validation, preprocessing, "validation")
    if held is None:
        learned, validated = split(rows, share=request.validation_split, seed=request.seed)
        held_images = Selection(rows.rows, validated)
    else:
        learned, validated = np.arange(len(rows.rows)), np.arange(len(held.rows))
        held_images = Selection(held.rows, validated)
    targets: NDArray[Any]
    if teacher is None:
        targets = rows.classes[learned]
        held_classes = rows.classes[validated] if held is None else held.classes
        held_teacher = None
    else:
        answers = _answers(teacher, sources.images, rows, decode, request.batch_size, "teacher")
        targets = answers[learned]
        if held is None or validation is None:
            held_teacher = answers[validated]
            held_classes = held_teacher.argmax(axis=1)
        else:
            held_teacher = _answers(teacher, validation, held, decode, request.batch_size, "teacher-validation")
            held_classes = held.classes
    network = load_network(parent if request.image_size is None else _resized(parent, preprocessing))
    if not sources.keep_head:
        network = with_classes(network, len(sources.labels))
    return Material(
        network=network,
        preprocessing=preprocessing,
        labels=sources.labels,
        images=Selection(rows.rows, learned),
        targets=targets,
        validation_images=held_images,
        validation_classes=held_classes,
        validation_teacher=held_teacher,
    )


def _resized(bundle: Bundle, preprocessing: Preprocessing) -> Bundle:
    """The same bundle for images of another size; weights don't depend on it."""
    spec = bundle.manifest.preprocessing.model_copy(update={"image_size": preprocessing.image_size})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"preprocessing": spec}))


def _decoder(
    request: FinetuneRequest, directory: Path, listener: Listener
) -> Callable[[ImageFiles, Preprocessing, str], Rows]:
    def decode(images: ImageFiles, preprocessing: Preprocessing, part: str) -> Rows:
        rows = read_rows(
            images, preprocessing, directory / part, max_pixels=request.max_pixels, progress=listener.decoding
        )
        if rows.failures and not part.startswith("teacher"):
            listener.unreadable(rows.failures, len(images.files))
        return rows

    return decode


def _answers(
    teacher: Bundle,
    images: ImageFiles,
    rows: Rows,
    decode: Callable[[ImageFiles, Preprocessing, str], Rows],
    batch_size: int,
    part: str,
) -> NDArray[np.float32]:
    """The teacher's logits `[N, C]` for the images of `rows`, each seen as the teacher's own transform shows it."""
    preprocessing = teacher.manifest.preprocessing.to_domain()
    shown = decode(images, preprocessing, part)
    if shown.kept.tolist() != rows.kept.tolist():
        raise DataSetError("Images changed while they were read; start again.")
    rows_shown = Selection(shown.rows, np.arange(len(shown.rows)))
    output = answers_of(load_network(teacher), preprocessing, rows_shown, batch_size=batch_size, names=[LOGITS])
    return output[LOGITS]


def _method(request: FinetuneRequest, sources: _Sources, *, images: int, epoch: str) -> str:
    teacher = sources.teacher
    size = request.image_size or sources.parent.manifest.preprocessing.image_size
    how = (
        f"fine-tuned on {images} images of {len(sources.labels)} classes"
        if teacher is None
        else f"distilled from {teacher.manifest.name}/{teacher.manifest.version} on {images} images without labels"
    )
    return (
        f"{how} ({request.train} trained, epoch {epoch}, batches of {request.batch_size}, learning "
        f"rate {request.learning_rate:g}, {size} pixels)"
    )
