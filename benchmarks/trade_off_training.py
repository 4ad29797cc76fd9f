"""Trains one network for `trade_off.py`, epoch by epoch, so that a run that was ended goes on; nothing is chosen."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors import safe_open
from safetensors.numpy import save_file

from condconv_serve.domain import Preprocessing
from condconv_serve.files import replacing
from condconv_serve.nn import build_network, cost, get_architecture
from condconv_serve.runtime.loading import load_network
from condconv_serve.store import open_bundle
from condconv_serve.store.importers import Upcycling
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from condconv_serve.training.batches import Augmentation, Batches, Selection, normalise
from condconv_serve.training.checkpoint import tensors_to_variables, variables_to_tensors
from condconv_serve.training.dataset import Rows, find_labelled, read_rows
from condconv_serve.training.network import set_trainable, with_classes

MAX_PIXELS = 100_000_000
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
NOISE = 0.1
"""Of upcycled experts, which would stay equal without it."""
MOMENTUM = 0.9
"""Of batch norms that are trained from scratch: Keras's 0.99 is too slow for runs of some hundred steps."""
# The conditional twin of each static network.
TWINS = {
    "mobilenet-v1": "condconv-mobilenet-v1-8e",
    "mobilenet-v2": "condconv-mobilenet-v2-8e",
    "mnasnet-a1": "condconv-mnasnet-a1-8e",
    "resnet-50": "condconv-resnet-50-8e",
    "efficientnet-b0": "efficientnet-condconv-b0-8e",
    "efficientnet-lite0": "efficientnet-lite0-condconv-4e",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: the static network, its width, whether it gets experts, and the budget.

    `weights` is the name of the file with its published weights; None: from scratch. `classes` None are all.
    """

    network: str
    width: float
    weights: str | None
    experts: int
    seed: int
    image_size: int
    epochs: int
    batch_size: int
    learning_rate: float
    classes: int | None

    @property
    def title(self) -> str:
        """For the terminal and for file names."""
        start = "weights" if self.weights else "scratch"
        return f"{self.network}-{self.width:g}-{start}-{self.experts or 'no'}-experts-seed-{self.seed}"


def train(run: Run, data: Path, work: Path, *, weights: Path | None) -> dict[str, Any]:
    """Train a network and count how many of the test images it gets right after the last epoch.

    Args:
        run: what to train.
        data: has the folders `train` and `test`, with a folder per class in each.
        work: keeps decoded images, and the state of a run that isn't finished.
        weights: the file that `run.weights` names.

    Returns:
        Images and right answers of the test, the training loss of each epoch, seconds of training, and the cost.
    """
    keras.utils.set_random_seed(run.seed)
    data = some_classes(data, work, run.classes)
    images = find_labelled(data / "train")
    network, preprocessing = start_of(run, len(images.names), weights)
    learned = decoded(data / "train", images.names, preprocessing, work)
    state = work / f"{run.title}.safetensors"
    losses, seconds = _learn(run, network, learned, preprocessing, state)
    tested = decoded(data / "test", images.names, preprocessing, work)
    right = answers(network, tested, preprocessing) == tested.classes
    found = cost(network)
    state.unlink(missing_ok=True)
    return {
        "images": len(right),
        "right": int(right.sum()),
        "losses": losses,
        "seconds": round(seconds, 1),
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
    }


def some_classes(data: Path, work: Path, count: int | None) -> Path:
    """The data set, or links to its first classes."""
    if count is None:
        return data
    few = work / f"first-{count}-classes"
    for folder in sorted((data / "train").iterdir())[:count]:
        for part in ("train", "test"):
            link = few / part / folder.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if (data / part / folder.name).is_dir() and not link.is_symlink():
                link.symlink_to((data / part / folder.name).resolve())
    return few


def start_of(run: Run, classes: int, weights: Path | None) -> tuple[Any, Preprocessing]:
    """The network that a run starts from, and what its pixels are."""
    name = TWINS[run.network] if run.experts else run.network
    overrides = {"width_coefficient": run.width, "image_size": run.image_size}
    if run.experts:
        overrides["num_experts"] = run.experts
    if weights is None:
        network = build_network(get_architecture(name, **overrides, num_classes=classes))
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = MOMENTUM
        levels = (127.5,) * 3
        return network, Preprocessing(
            transform="central", image_size=run.image_size, mean=levels, std=levels, interpolation="bilinear"
        )
    with tempfile.TemporaryDirectory() as store:
        request = ImportRequest(
            source=weights,
            architecture=name,
            name=name,
            overrides=overrides,
            upcycling=Upcycling(noise=NOISE) if run.experts else None,
        )
        bundle = open_bundle(import_bundle(request, store=Path(store)))
        network = with_classes(load_network(bundle), classes)
    set_trainable(network, "all")
    return network, bundle.manifest.preprocessing.to_domain()


def decoded(directory: Path, names: Sequence[str], preprocessing: Preprocessing, work: Path) -> Rows:
    """The images of a folder as rows; each size and transform is decoded once."""
    images = find_labelled(directory, names=names)
    kind = f"{preprocessing.transform}-{preprocessing.interpolation}-{preprocessing.image_size}"
    place = work / "rows" / f"{directory.name}-{kind}-{images.fingerprint()[:12]}"
    return read_rows(images, preprocessing, place, max_pixels=MAX_PIXELS)


def answers(network: Any, tested: Rows, preprocessing: Preprocessing, batch_size: int = 64) -> Any:
    """The most probable class of each image."""
    compute = tf.function(lambda pixels: network(pixels, training=False)["logits"])
    found = [
        compute(tf.constant(normalise(tested.rows[first : first + batch_size], preprocessing)))
        for first in range(0, len(tested.rows), batch_size)
    ]
    return np.concatenate(found).argmax(axis=1)


def _learn(
    run: Run, network: Any, learned: Rows, preprocessing: Preprocessing, state: Path
) -> tuple[list[float], float]:
    """Train to the end, from the last epoch that was saved; returns the losses, and the seconds of all epochs."""
    batches = Batches(
        images=Selection(learned.rows, np.arange(len(learned.rows))),
        targets=learned.classes,
        preprocessing=preprocessing,
        batch_size=run.batch_size,
        augmentation=Augmentation(),
        seed=run.seed,
    )
    trainer = keras.Model(network.inputs[0], network.output["logits"])
    steps = batches.steps * run.epochs
    warm_up = max(1, round(WARM_UP * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=run.learning_rate, warmup_steps=warm_up
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0), loss, jit_compile=False)
    trainer.optimizer.build(trainer.trainable_variables)
    kept = [
        *(variable for layer in trainer.layers for variable in layer.variables),
        *trainer.optimizer.variables,
    ]
    losses, seconds = _restore(state, kept, asdict(run))
    stream = tf.data.Dataset.from_generator(
        lambda: batches.epochs(len(losses), run.epochs), output_signature=batches.signature
    ).prefetch(2)

    class Keep(keras.callbacks.Callback):
        began = time.monotonic()

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            nonlocal seconds
            losses.append(round(float((logs or {})["loss"]), 4))
            seconds += time.monotonic() - self.began
            figures = json.dumps({"run": asdict(run), "losses": losses, "seconds": seconds})
            with replacing(state) as scratch:
                save_file(variables_to_tensors(kept, "kept"), scratch, metadata={"figures": figures})
            print(f"  epoch {epoch + 1} of {run.epochs}: loss {losses[-1]:.3f}", flush=True)

    if len(losses) < run.epochs:
        trainer.fit(
            stream,
            initial_epoch=len(losses),
            epochs=run.epochs,
            steps_per_epoch=batches.steps,
            callbacks=[Keep()],
            shuffle=False,  # the batches are
            verbose=0,
        )
    return losses, seconds


def _restore(state: Path, kept: Sequence[Any], run: dict[str, Any]) -> tuple[list[float], float]:
    """Take up what a run with the same settings has saved."""
    if not state.exists():
        return [], 0.0
    with safe_open(state, framework="np") as tensors:
        figures = json.loads(tensors.metadata()["figures"])
        if figures["run"] != run:
            return [], 0.0
        tensors_to_variables({name: tensors.get_tensor(name) for name in tensors.keys()}, kept, "kept")  # noqa: SIM118
    return figures["losses"], figures["seconds"]
