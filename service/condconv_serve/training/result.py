"""Writes the result of training: the new bundle, with its measured accuracy, its origin and a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np

from condconv_serve.domain import LOGITS, ROUTING, Tensors
from condconv_serve.domain.manifest import Accuracy, Provenance
from condconv_serve.nn import network_to_json
from condconv_serve.routing.profile import profile_of
from condconv_serve.runtime.outputs import routing_layout
from condconv_serve.store import OWN_NETWORK, Bundle, NewBundle, write_bundle
from condconv_serve.training.answers import answers_of
from condconv_serve.training.evaluation import Evaluation
from condconv_serve.training.material import Material
from condconv_serve.training.request import Epoch, Figures
from condconv_serve.training.saving import read_values, rebuild, to_spec

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained network, and what its bundle is to say of it.

    Attributes:
        name: of the new model.
        version: of the new bundle.
        method: how it was made, in a sentence.
        parent: the bundle that training started from.
        material: the network with the weights to write, and the images to validate with.
        classes_known: whether somebody knows the right classes of those images, rather than just the teacher's.
        dataset: what those images are.
        history: all epochs; the first one is the starting point.
        best_epoch: the position of the epoch whose weights these are.
    """

    name: str
    version: str
    method: str
    parent: Bundle
    material: Material
    classes_known: bool
    dataset: str
    history: Sequence[Epoch[Evaluation]]
    best_epoch: int

    @property
    def start(self) -> Evaluation:
        """Figures before training."""
        return self.history[0].validation

    @property
    def best(self) -> Evaluation:
        """Figures of these weights."""
        return self.history[self.best_epoch].validation


# Without slots: with them Python 3.11 could not call an alias such as `Finished[Evaluation]`.
@dataclass(frozen=True, kw_only=True)
class Finished(Generic[Figures]):
    """A finished run: where its bundle is, and what it has brought."""

    path: Path
    start: Figures
    best: Figures
    best_epoch: int
    accuracy: tuple[Accuracy, ...]
    history: Sequence[Mapping[str, Any]]


def write_result(trained: Trained, *, store: Path) -> Finished[Evaluation]:
    """Measure a trained network with the engine that serves it, and write the bundle.

    Raises:
        BundleError: somebody else has written this version meanwhile.
        OSError: the disk is full.
    """
    parent, material = trained.parent, trained.material
    network, labels, preprocessing = material.network, material.labels, material.preprocessing
    network.trainable = True  # all layers: the next training chooses again
    output = answers_of(network, preprocessing, material.validation_images, batch_size=_BATCH, names=[LOGITS, ROUTING])
    accuracy = (_accuracy(output, trained),) if trained.classes_known else ()
    own = parent.manifest.architecture.name == OWN_NETWORK
    text = network_to_json(network) if own else None
    weights = read_values(rebuild(network, text, preprocessing) if text is not None else network)
    layout, predicted = routing_layout(network), output[LOGITS].argmax(axis=1)
    path = write_bundle(
        store,
        NewBundle(
            name=trained.name,
            version=trained.version,
            architecture=_architecture(parent, len(labels)),
            network=text,
            preprocessing=to_spec(preprocessing),
            weights=weights,
            labels=labels,
            provenance=Provenance(
                source=f"{parent.manifest.name}/{parent.manifest.version}",
                method=trained.method,
                source_sha256=parent.weights_sha256,
            ),
            licence=parent.manifest.licence,
            model_card=_card(trained, accuracy),
            accuracy=accuracy,
            routing_profile=profile_of(output[ROUTING], predicted, layout) if layout else None,
        ),
    )
    return Finished(
        path=path,
        start=trained.start,
        best=trained.best,
        best_epoch=trained.best_epoch,
        accuracy=accuracy,
        history=[epoch.to_json() for epoch in trained.history],
    )


def _accuracy(output: Tensors, trained: Trained) -> Accuracy:
    classes = trained.material.validation_classes
    order = np.argsort(-output[LOGITS], axis=1, kind="stable")
    hits = order == classes[:, None]
    return Accuracy(
        dataset=trained.dataset,
        images=len(classes),
        transform=trained.material.preprocessing.transform,
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(axis=1).mean()) if order.shape[1] > 5 else None,
        note=f"The same images chose epoch {trained.best_epoch}, which flatters a little.",
    )


def _architecture(parent: Bundle, classes: int) -> dict[str, Any]:
    spec = parent.manifest.architecture
    if spec.name == OWN_NETWORK:
        return {"name": OWN_NETWORK}
    return {"name": spec.name, **spec.overrides, "num_classes": classes}


def _card(trained: Trained, accuracy: Sequence[Accuracy]) -> str:
    parent, labels = trained.parent, trained.material.labels
    start, best = trained.start, trained.best
    classes = ", ".join(label.label for label in labels[:20]) + (
        f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    )
    what = "accuracy" if accuracy else "agreement with the teacher"
    lines = [
        f"# {trained.name}",
        "",
        f"An image classifier of {len(labels)} classes: {classes}.",
        "",
        "## How it was made",
        "",
        f"From `{parent.manifest.name}/{parent.manifest.version}`, {trained.method}. "
        "The batch norms kept their statistics.",
        "",
        "## What was measured",
        "",
        f"On {len(trained.material.validation_images)} validation images, which also chose the epoch:",
        "",
        f"| | start | epoch {trained.best_epoch} |",
        "|---|---|---|",
        f"| {what} | {start.accuracy:.1%} | {best.accuracy:.1%} |",
        f"| loss (nats) | {start.loss:.3f} | {best.loss:.3f} |",
    ]
    if best.entropy:
        lines += [
            f"| routing entropy (1: all experts alike) | {start.mean_entropy:.3f} | {best.mean_entropy:.3f} |",
            f"| variance of routing between classes, corrected for chance | {start.mean_between_classes:.1%} | "
            f"{best.mean_between_classes:.1%} |",
        ]
    lines += ["", f"Licence of the weights that it started from: {parent.manifest.licence}.", ""]
    return "\n".join(lines)
