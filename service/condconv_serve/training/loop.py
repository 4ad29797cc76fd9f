"""Trains a network epoch by epoch, validates it, and saves the state so that a killed run can go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.errors import ConfigurationError
from condconv_serve.training.checkpoint import RunDirectory, tensors_to_variables, variables_to_tensors
from condconv_serve.training.request import ENOUGH_STEPS, Epoch, Listener, Start, Validation

_CLIP = 1.0
_WARM_UP_SHARE = 0.05


class BatchSource(Protocol):
    """Batches of an epoch, the same whenever the epoch is asked for."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        ...

    @property
    def signature(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Shape and type of a batch's inputs and targets."""
        ...

    def epochs(self, first: int, last: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Batches of the epochs `first` (from 0) to `last` (excluded): inputs and targets."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many images there are, classes, and trained parameters."""

    training: int
    validation: int
    classes: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained on which batches, and how it is validated.

    Attributes:
        trainer: takes the batches' inputs, and returns what `loss` compares with their targets.
        loss: of a batch.
        batches: what to learn from.
        validate: computes the figures of the weights as they are.
        read_validation: makes figures of the plain values that they became in a state.
        epochs: how often everything is seen.
        learning_rate: the highest one.
        counts: what the listener is told.
    """

    trainer: keras.Model
    loss: Callable[[Any, Any], Any]
    batches: BatchSource
    validate: Callable[[], Validation]
    read_validation: Callable[..., Validation]
    epochs: int
    learning_rate: float
    counts: Counts


def train(plan: Plan, run: RunDirectory, listener: Listener) -> tuple[list[Epoch[Any]], int]:
    """Train the network; it ends up with the weights of the best epoch.

    Returns:
        All epochs, and the number of the best one.
    """
    trainer, batches, epochs = plan.trainer, plan.batches, plan.epochs
    steps = batches.steps * epochs
    optimizer = keras.optimizers.Adam(_schedule(plan.learning_rate, steps), global_clipnorm=_CLIP)
    trainer.compile(optimizer, plan.loss, jit_compile=False)
    optimizer.build(trainer.trainable_variables)
    watch = _Watch(plan, run, listener)
    first = watch.restore()
    counts = plan.counts
    listener.starting(
        Start(
            training=counts.training,
            validation=counts.validation,
            classes=counts.classes,
            parameters=counts.parameters,
            epochs=epochs,
            learning_rate=plan.learning_rate,
            first_epoch=first,
        )
    )
    if steps < ENOUGH_STEPS:
        listener.warning(
            f"These are only {steps} steps in all, and fewer than {ENOUGH_STEPS} mostly learn too "
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
    return watch.history, watch.best


def _schedule(rate: float, steps: int) -> Any:
    warm_up = min(max(1, round(_WARM_UP_SHARE * steps)), steps - 1)
    if steps < 2:
        return rate
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up
    )


def _stream(batches: BatchSource, first: int, last: int) -> Any:
    made = tf.data.Dataset.from_generator(lambda: batches.epochs(first, last), output_signature=batches.signature)
    return made.prefetch(2)


class _Watch(keras.callbacks.Callback):
    """Validates after every epoch, keeps the best weights, and saves the state."""

    def __init__(self, plan: Plan, run: RunDirectory, listener: Listener) -> None:
        super().__init__()
        self.history: list[Epoch[Any]] = []
        self.best = 0
        self._plan = plan
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
        self.history = [Epoch.from_json(epoch, self._plan.read_validation) for epoch in figures["history"]]
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
        validation = self._plan.validate()
        epoch = Epoch(
            number=number,
            training_loss=training_loss,
            validation=validation,
            seconds=time.monotonic() - self._began,
        )
        self.history.append(epoch)
        if number == 0 or validation.rank > self.history[self.best].validation.rank:
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
