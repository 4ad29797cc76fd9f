"""Trains a network epoch by epoch, validates it, and saves the state so that a killed run can go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.domain import Label, Preprocessing
from condconv_serve.errors import ConfigurationError
from condconv_serve.training.batches import Augmentation, Batches, Selection
from condconv_serve.training.checkpoint import RunDirectory, tensors_to_variables, variables_to_tensors
from condconv_serve.training.evaluation import Evaluation, evaluate, measure
from condconv_serve.training.frozen import FeatureBatches, compute_features, compute_outputs, split_network
from condconv_serve.training.network import set_trainable
from condconv_serve.training.request import (
    ENOUGH_STEPS,
    Epoch,
    FinetuneRequest,
    Listener,
    Start,
    default_epochs,
    default_learning_rate,
)

_CLIP = 1.0
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a run learns from, ready."""

    network: keras.Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    images: Selection
    targets: NDArray[Any]
    validation_images: Selection
    validation_classes: NDArray[np.int64]
    validation_teacher: NDArray[np.float32] | None


def train(
    request: FinetuneRequest, material: Material, run: RunDirectory, listener: Listener
) -> tuple[list[Epoch], int]:
    """Train the network; it ends up with the weights of the best epoch.

    Returns:
        All epochs, and the number of the best one.
    """
    network = material.network
    parameters = set_trainable(network, request.train)
    plan = _frozen_plan(request, material, run, listener) if request.frozen else _whole_plan(request, material)
    trainer, batches = plan.trainer, plan.batches
    epochs = request.epochs or default_epochs(request, batches.steps)
    rate = request.learning_rate or default_learning_rate(request.train, request.batch_size)
    optimizer = keras.optimizers.Adam(_schedule(rate, batches.steps * epochs), global_clipnorm=_CLIP)
    trainer.compile(optimizer, _loss(request), jit_compile=False)
    optimizer.build(trainer.trainable_variables)
    watch = _Watch(plan, run, listener)
    first = watch.restore()
    listener.starting(
        Start(
            training=len(material.images),
            validation=len(material.validation_images),
            classes=len(material.labels),
            parameters=parameters,
            epochs=epochs,
            learning_rate=rate,
            first_epoch=first,
        )
    )
    if batches.steps * epochs < ENOUGH_STEPS:
        listener.warning(
            f"These are only {batches.steps * epochs} steps in all, and fewer than {ENOUGH_STEPS} mostly learn too "
            "little. Choose more --epochs, or a smaller --batch-size."
        )
    if first == 0 and not watch.history:
        watch.start()
    if first < epochs:
        trainer.fit(
            _stream(batches, first, epochs),
            initial_epoch=first,
            epochs=epochs,
            steps_per_epoch=batches.steps,
            callbacks=[watch],
            shuffle=False,  # the batches are
            verbose=0,
        )
    watch.use_best()
    if (failed := failure(watch.history, watch.best, material)) is not None:
        listener.warning(failed)
    return watch.history, watch.best


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is trained on which batches, and how it is validated."""

    trainer: keras.Model
    batches: Batches | FeatureBatches
    validate: Callable[[], Evaluation]


def _whole_plan(request: FinetuneRequest, material: Material) -> _Plan:
    """Each step computes the network from the pixels on."""
    network = material.network
    batches = Batches(
        images=material.images,
        targets=material.targets,
        preprocessing=material.preprocessing,
        batch_size=request.batch_size,
        augmentation=request.augmentation or Augmentation(shift=False, mirror=False),
        seed=request.seed,
    )

    def validate() -> Evaluation:
        return evaluate(
            network,
            material.validation_images,
            material.validation_classes,
            teacher=material.validation_teacher,
            temperature=request.temperature,
            preprocessing=material.preprocessing,
            batch_size=request.batch_size,
        )

    return _Plan(keras.Model(network.inputs[0], network.output["logits"]), batches, validate)


def _frozen_plan(request: FinetuneRequest, material: Material, run: RunDirectory, listener: Listener) -> _Plan:
    """The backbone computes each image once; then each step computes the last layer."""
    split = split_network(material.network)
    features = compute_features(
        split.backbone,
        material.images,
        material.preprocessing,
        run.path / "features",
        batch_size=request.batch_size,
        progress=listener.features,
    )
    seen, routing = compute_outputs(
        split.backbone, material.validation_images, material.preprocessing, batch_size=request.batch_size
    )
    batches = FeatureBatches(
        features=features, targets=material.targets, batch_size=request.batch_size, seed=request.seed
    )

    def validate() -> Evaluation:
        logits = split.head.predict_on_batch(seen)
        teacher, temperature = material.validation_teacher, request.temperature
        return measure(logits, routing, material.validation_classes, teacher=teacher, temperature=temperature)

    return _Plan(split.head, batches, validate)


def failure(history: Sequence[Epoch], best: int, material: Material) -> str | None:
    """What to say of a run that learned nothing; None of any other.

    Args:
        history: all epochs.
        best: the position of the best one.
        material: whose validation images count.
    """
    counts = np.bincount(material.validation_classes)
    commonest, share = int(counts.argmax()), float(counts.max() / counts.sum())
    advice = "Try another --learning-rate, more --epochs, or more images."
    if best == 0:
        return f"Nothing was learned: no epoch was better than the start. {advice}"
    if history[best].validation.accuracy <= share:
        label = material.labels[commonest].label
        return f"Nothing was learned: always to answer {label!r} would be right as often ({share:.1%}). {advice}"
    return None


def _schedule(rate: float, steps: int) -> Any:
    warm_up = min(max(1, round(_WARM_UP_SHARE * steps)), steps - 1)
    if steps < 2:
        return rate
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up
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


def _stream(batches: Batches | FeatureBatches, first: int, last: int) -> Any:
    targets = batches.targets
    signature = (
        tf.TensorSpec((None, *batches.shape), tf.float32),
        tf.TensorSpec((None, *targets.shape[1:]), targets.dtype),
    )
    return tf.data.Dataset.from_generator(lambda: batches.epochs(first, last), output_signature=signature).prefetch(2)


class _Watch(keras.callbacks.Callback):
    """Validates after every epoch, keeps the best weights, and saves the state."""

    def __init__(self, plan: _Plan, run: RunDirectory, listener: Listener) -> None:
        super().__init__()
        self.history: list[Epoch] = []
        self.best = 0
        self._validate = plan.validate
        self._trainer = trainer = plan.trainer
        self._run = run
        self._listener = listener
        self._steps = plan.batches.steps
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
        validation = self._validate()
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
