"""What a classifier is trained on, and how: the whole network, or its last layer on features that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Label, Preprocessing
from condconv_serve.training.batches import Augmentation, Batches, Selection
from condconv_serve.training.checkpoint import RunDirectory
from condconv_serve.training.evaluation import Evaluation, evaluate, measure
from condconv_serve.training.frozen import FeatureBatches, compute_features, compute_outputs, split_network
from condconv_serve.training.loop import Counts, Plan
from condconv_serve.training.network import set_trainable
from condconv_serve.training.request import (
    Epoch,
    FinetuneRequest,
    Listener,
    default_epochs,
    default_learning_rate,
)


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


def plan_training(request: FinetuneRequest, material: Material, run: RunDirectory, listener: Listener) -> Plan:
    """Choose what learns, and on which batches."""
    parameters = set_trainable(material.network, request.train)
    plan = _frozen_plan if request.frozen else _whole_plan
    counts = Counts(
        training=len(material.images),
        validation=len(material.validation_images),
        classes=len(material.labels),
        parameters=parameters,
    )
    return plan(request, material, counts, run, listener)


def _whole_plan(
    request: FinetuneRequest, material: Material, counts: Counts, run: RunDirectory, listener: Listener
) -> Plan:
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

    return _plan(request, keras.Model(network.inputs[0], network.output["logits"]), batches, validate, counts)


def _frozen_plan(
    request: FinetuneRequest, material: Material, counts: Counts, run: RunDirectory, listener: Listener
) -> Plan:
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

    return _plan(request, split.head, batches, validate, counts)


def _plan(request: FinetuneRequest, trainer: keras.Model, batches: Any, validate: Any, counts: Counts) -> Plan:
    return Plan(
        trainer=trainer,
        loss=_loss(request),
        batches=batches,
        validate=validate,
        read_validation=Evaluation,
        epochs=request.epochs or default_epochs(request, batches.steps),
        learning_rate=request.learning_rate or default_learning_rate(request.train, request.batch_size),
        counts=counts,
    )


def failure(history: Sequence[Epoch[Evaluation]], best: int, material: Material) -> str | None:
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
