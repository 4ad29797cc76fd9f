"""Adapts a bundle to images of one's own, with their classes or with a teacher, and makes a new bundle of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.domain import Label, Preprocessing
from service.errors import ConfigurationError, DataSetError, OutOfMemory
from service.runtime.inference_graph import freeze
from service.runtime.loading import load_network
from service.runtime.machine import available_cores
from service.runtime.tensorflow_engine import TensorFlowEngine
from service.store import Bundle, open_bundle, read_labels
from service.store.bundle import check_free, next_version
from service.store.manifest import OWN_NETWORK
from service.training.batches import Augmentation, Batches, Selection
from service.training.checkpoint import RunDirectory, tensors_to_variables, variables_to_tensors
from service.training.dataset import ImageFiles, Rows, find_labelled, find_unlabelled, read_rows, split
from service.training.evaluation import Evaluation, evaluate
from service.training.network import Part, set_trainable, with_classes
from service.training.result import Finished, write_result

_CLIP = 1.0
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """What to train, on what, and how.

    Attributes:
        bundle: the directory of the bundle to start from.
        data: images: a folder per class, or with a teacher any folder of images.
        name: of the new model.
        version: of the new bundle; one more than the largest there is if None.
        teacher: the directory of a bundle of the same classes whose answers are to be learned.
        temperature: both answers are softened by before they are compared with the teacher's.
        validation_data: labelled images to validate with; with a teacher, their folders are named as its classes.
        validation_split: share of the images to validate with otherwise.
        train: what learns.
        image_size: pixels per side, if other than the bundle's.
        epochs: how often all images are seen.
        batch_size: images per step.
        learning_rate: the greatest one; it rises for a twentieth of the steps, then falls along a cosine to zero.
        augmentation: how training images are varied.
        seed: of everything random.
        resume: continue an unfinished run of the same name and version.
        restart: forget such a run instead.
        max_pixels: most pixels of an image.
    """

    bundle: Path
    data: Path
    name: str
    version: str | None = None
    teacher: Path | None = None
    temperature: float = 2.0
    validation_data: Path | None = None
    validation_split: float = 0.2
    train: Part = "all"
    image_size: int | None = None
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    resume: bool = False
    restart: bool = False
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One finished epoch; number 0 is the starting point, without a training loss."""

    number: int
    training_loss: float | None
    validation: Evaluation
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "number": self.number,
            "training_loss": self.training_loss,
            "validation": self.validation.to_json(),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Epoch:
        """Undo `to_json`."""
        return cls(**{**document, "validation": Evaluation(**document["validation"])})


class Listener(Protocol):
    """Is told how a run gets on."""

    def decoding(self, done: int, total: int) -> None:
        """So many of the images are decoded."""

    def unreadable(self, failures: tuple[tuple[Path, str], ...], total: int) -> None:
        """These images are left out, with the reason of each."""

    def starting(self, *, training: int, validation: int, classes: int, parameters: int, first_epoch: int) -> None:
        """Training begins, or goes on after `first_epoch` epochs."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A batch has been learned."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has been validated."""


@dataclass(frozen=True, slots=True)
class _Material:
    """Everything that a run learns from, ready."""

    network: keras.Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    images: Selection
    targets: NDArray[Any]
    validation_images: Selection
    validation_classes: NDArray[np.int64]
    validation_teacher: NDArray[np.float32] | None


def finetune(request: FinetuneRequest, *, store: Path, listener: Listener) -> Finished:
    """Train, and write the new bundle with the weights of the epoch that was best on the validation images.

    After every epoch the state is saved in a hidden folder of the store; a run that was interrupted, even killed, goes
    on from there with `resume`, with the very batches that it would have seen.

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
    _check(request)
    parent = open_bundle(request.bundle)
    teacher = None if request.teacher is None else open_bundle(request.teacher)
    version = request.version or next_version(store, request.name)
    check_free(store, request.name, version)
    keras.utils.set_random_seed(request.seed)
    run = RunDirectory(store, request.name, version)
    images, validation, labels, keep_head = _find_images(request, parent, teacher)
    options = _options(request, parent, teacher, images, validation)
    with run.claimed(options, resume=request.resume, restart=request.restart):
        try:
            material, decoded = _prepare(request, parent, teacher, images, validation, labels, keep_head, run, listener)
            history, best = _train(request, material, run, listener)
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise OutOfMemory(
                f"There is too little memory for batches of {request.batch_size} images of "
                f"{request.image_size or parent.manifest.preprocessing.image_size} pixels; choose a smaller "
                "--batch-size or --image-size."
            ) from error
        return write_result(
            store,
            name=request.name,
            version=version,
            method=_method(request, parent, teacher, len(material.images), len(labels), best),
            parent=parent,
            network=material.network,
            labels=material.labels,
            preprocessing=material.preprocessing,
            images=material.validation_images,
            classes=None if teacher is not None and request.validation_data is None else material.validation_classes,
            dataset=f"{(request.validation_data or request.data).name}, "
            + ("validation data" if request.validation_data else f"{request.validation_split:.0%} held back"),
            start=history[0].validation,
            best=history[best].validation,
            best_epoch=best,
            history=[epoch.to_json() for epoch in history],
            failures=decoded,
        )


def _check(request: FinetuneRequest) -> None:
    if not 0 < request.validation_split < 1:
        raise ConfigurationError(f"The validation split must be between 0 and 1, not {request.validation_split}.")
    for name in ("epochs", "batch_size"):
        if getattr(request, name) < 1:
            raise ConfigurationError(f"{name} must be at least 1, not {getattr(request, name)}.")
    for name in ("learning_rate", "temperature"):
        value = getattr(request, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{name} must be above 0, not {value}.")
    if request.image_size is not None and not 32 <= request.image_size <= 2048:
        raise ConfigurationError(f"image_size must be from 32 to 2048, not {request.image_size}.")


def _find_images(
    request: FinetuneRequest, parent: Bundle, teacher: Bundle | None
) -> tuple[ImageFiles, ImageFiles | None, tuple[Label, ...], bool]:
    """The images, those to validate with if they are given, the classes, and whether these are the bundle's own."""
    known = read_labels(parent)
    if teacher is not None:
        if [label.label for label in read_labels(teacher)] != [label.label for label in known]:
            raise ConfigurationError(
                f"The teacher {teacher.manifest.name} has other classes than {parent.manifest.name}."
            )
        validation = None
        if request.validation_data is not None:
            validation = find_labelled(request.validation_data, names=_folder_names(known, request.validation_data))
        return find_unlabelled(request.data), validation, known, True
    images = find_labelled(request.data)
    for names in ([label.label for label in known], [label.synset for label in known]):
        if set(images.names) == set(names):
            images = find_labelled(request.data, names=[str(name) for name in names])
            labels, keep = known, True
            break
    else:
        labels, keep = tuple(Label(index, name) for index, name in enumerate(images.names)), False
    validation = None if request.validation_data is None else find_labelled(request.validation_data, names=images.names)
    return images, validation, labels, keep


def _folder_names(labels: tuple[Label, ...], directory: Path) -> list[str]:
    """How a data set's folders call the classes: by their synsets if one of them is one, else by their labels."""
    synsets = [label.synset or label.label for label in labels]
    folders = {child.name for child in directory.iterdir()} if directory.is_dir() else set()
    return synsets if folders & set(synsets) else [label.label for label in labels]


def _options(
    request: FinetuneRequest,
    parent: Bundle,
    teacher: Bundle | None,
    images: ImageFiles,
    validation: ImageFiles | None,
) -> dict[str, Any]:
    """What a run depends on, in plain values."""
    given = asdict(request)
    for name in ("bundle", "data", "teacher", "validation_data", "name", "version", "resume", "restart", "max_pixels"):
        del given[name]
    return {
        **given,
        "bundle": _sha256(parent),
        "teacher": None if teacher is None else _sha256(teacher),
        "data": images.fingerprint(),
        "validation_data": None if validation is None else validation.fingerprint(),
    }


def _sha256(bundle: Bundle) -> str:
    return bundle.manifest.files["weights.safetensors"].sha256


def _prepare(
    request: FinetuneRequest,
    parent: Bundle,
    teacher: Bundle | None,
    images: ImageFiles,
    validation: ImageFiles | None,
    labels: tuple[Label, ...],
    keep_head: bool,
    run: RunDirectory,
    listener: Listener,
) -> tuple[_Material, tuple[tuple[Path, str], ...]]:
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
    rows = decode(images, preprocessing, "training")
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
        answers = _answers(teacher, images, rows, decode, request.batch_size, "teacher")
        targets = answers[learned]
        if held is None or validation is None:
            held_teacher = answers[validated]
            held_classes = held_teacher.argmax(axis=1)
        else:
            held_teacher = _answers(teacher, validation, held, decode, request.batch_size, "teacher-validation")
            held_classes = held.classes
    network = load_network(parent if request.image_size is None else _resized(parent, preprocessing))
    if not keep_head:
        network = with_classes(network, len(labels))
    material = _Material(
        network=network,
        preprocessing=preprocessing,
        labels=labels,
        images=Selection(rows.rows, learned),
        targets=targets,
        validation_images=held_images,
        validation_classes=held_classes,
        validation_teacher=held_teacher,
    )
    return material, rows.failures + (() if held is None else held.failures)


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
    engine = TensorFlowEngine(freeze(load_network(teacher), preprocessing), threads_per_stream=available_cores())
    try:
        return np.concatenate(
            [
                engine(np.ascontiguousarray(shown.rows[start : start + batch_size])).logits
                for start in range(0, len(shown.rows), batch_size)
            ]
        )
    finally:
        engine.close()


def _train(
    request: FinetuneRequest, material: _Material, run: RunDirectory, listener: Listener
) -> tuple[list[Epoch], int]:
    """Train the network; it ends up with the weights of the best epoch.

    Returns:
        All epochs, and the number of the best one.
    """
    network = material.network
    parameters = set_trainable(network, request.train)
    trainer = keras.Model(network.inputs[0], network.output["logits"])
    batches = Batches(
        images=material.images,
        targets=material.targets,
        preprocessing=material.preprocessing,
        batch_size=request.batch_size,
        augmentation=request.augmentation,
        seed=request.seed,
    )
    optimizer = keras.optimizers.Adam(_schedule(request, batches.steps * request.epochs), global_clipnorm=_CLIP)
    trainer.compile(optimizer, _loss(request), jit_compile=False)
    optimizer.build(trainer.trainable_variables)
    watch = _Watch(request, material, trainer, run, listener, steps=batches.steps)
    first = watch.restore()
    listener.starting(
        training=len(material.images),
        validation=len(material.validation_images),
        classes=len(material.labels),
        parameters=parameters,
        first_epoch=first,
    )
    if first == 0 and not watch.history:
        watch.start()
    if first < request.epochs:
        trainer.fit(
            _stream(batches, first, request.epochs),
            initial_epoch=first,
            epochs=request.epochs,
            steps_per_epoch=batches.steps,
            callbacks=[watch],
            shuffle=False,  # the batches are
            verbose=0,
        )
    watch.use_best()
    return watch.history, watch.best


def _schedule(request: FinetuneRequest, steps: int) -> Any:
    warm_up = min(max(1, round(_WARM_UP_SHARE * steps)), steps - 1)
    if steps < 2:
        return request.learning_rate
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=request.learning_rate, warmup_steps=warm_up
    )


def _loss(request: FinetuneRequest) -> Any:
    if request.teacher is None:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    temperature = request.temperature

    def divergence(teacher: Any, student: Any) -> Any:
        """Kullback-Leibler divergence of softened answers (Hinton et al., 2015, section 2), in nats."""
        wanted = keras.ops.log_softmax(teacher / temperature)
        found = keras.ops.log_softmax(student / temperature)
        # Squared, so that gradients are as large as at temperature 1.
        return temperature**2 * keras.ops.sum(keras.ops.exp(wanted) * (wanted - found), axis=-1)

    return divergence


def _stream(batches: Batches, first: int, last: int) -> Any:
    size = batches.preprocessing.image_size
    targets = batches.targets
    signature = (
        tf.TensorSpec((None, size, size, 3), tf.float32),
        tf.TensorSpec((None, *targets.shape[1:]), targets.dtype),
    )
    return tf.data.Dataset.from_generator(lambda: batches.epochs(first, last), output_signature=signature).prefetch(2)


class _Watch(keras.callbacks.Callback):
    """Validates after every epoch, keeps the best weights, and saves the state."""

    def __init__(
        self,
        request: FinetuneRequest,
        material: _Material,
        trainer: keras.Model,
        run: RunDirectory,
        listener: Listener,
        *,
        steps: int,
    ) -> None:
        super().__init__()
        self.history: list[Epoch] = []
        self.best = 0
        self._request = request
        self._material = material
        self._trainer = trainer
        self._run = run
        self._listener = listener
        self._steps = steps
        self._epoch = 0
        self._began = time.monotonic()
        self._best_weights: dict[str, NDArray[Any]] = {}
        # More than the weights: dropout's random numbers go on, too.
        self._state = [variable for layer in trainer.layers for variable in layer.variables]

    def start(self) -> None:
        """Validate what the run starts from."""
        self._began = time.monotonic()
        self._finish(0, None)

    def restore(self) -> int:
        """Take up an unfinished run; returns how many epochs it has finished."""
        found = self._run.load()
        if found is None:
            return 0
        tensors, figures = found
        tensors_to_variables(tensors, self._state, "state")
        tensors_to_variables(tensors, self._trainer.optimizer.variables, "optimizer")
        self._best_weights = {name: value for name, value in tensors.items() if name.startswith("best/")}
        self.history = [Epoch.from_json(epoch) for epoch in figures["history"]]
        self.best = figures["best"]
        return self.history[-1].number

    def use_best(self) -> None:
        """Give the network the weights of its best epoch."""
        tensors_to_variables(self._best_weights, self._trainer.weights, "best")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._began = epoch, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float((logs or {}).get("loss", math.nan))
        if not math.isfinite(loss):
            raise ConfigurationError(
                f"The loss is no longer finite in epoch {self._epoch + 1}; choose a smaller --learning-rate."
            )
        self._listener.step(self._epoch + 1, batch + 1, self._steps, loss)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._finish(epoch + 1, float((logs or {})["loss"]))

    def _finish(self, number: int, training_loss: float | None) -> None:
        material, request = self._material, self._request
        validation = evaluate(
            material.network,
            material.validation_images,
            material.validation_classes,
            teacher=material.validation_teacher,
            temperature=request.temperature,
            preprocessing=material.preprocessing,
            batch_size=request.batch_size,
        )
        epoch = Epoch(
            number=number,
            training_loss=training_loss,
            validation=validation,
            seconds=time.monotonic() - self._began,
        )
        self.history.append(epoch)
        if number == 0 or _rank(validation) > _rank(self.history[self.best].validation):
            self.best = number
            self._best_weights = variables_to_tensors(self._trainer.weights, "best")
        self._run.save(
            {
                **variables_to_tensors(self._state, "state"),
                **variables_to_tensors(self._trainer.optimizer.variables, "optimizer"),
                **self._best_weights,
            },
            {"history": [past.to_json() for past in self.history], "best": self.best},
        )
        self._listener.epoch(epoch)


def _rank(validation: Evaluation) -> tuple[float, float]:
    """More right answers are better, and among equals those given with less doubt."""
    return validation.accuracy, -validation.loss


def _method(
    request: FinetuneRequest, parent: Bundle, teacher: Bundle | None, images: int, classes: int, best: int
) -> str:
    how = (
        f"fine-tuned on {images} images of {classes} classes"
        if teacher is None
        else f"distilled from {teacher.manifest.name}/{teacher.manifest.version} on {images} images without labels"
    )
    return (
        f"{how} ({request.train} trained, epoch {best} of {request.epochs}, batches of {request.batch_size}, learning "
        f"rate {request.learning_rate:g}, {request.image_size or parent.manifest.preprocessing.image_size} pixels)"
    )
