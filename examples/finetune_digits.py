"""Turn a static network into a CondConv one, fine-tune it, and see its routing learn to tell digits apart.

The same network is fine-tuned without experts too, so that you see what the experts add.

Run `python examples/finetune_digits.py models/`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
from digits import write_digits

from condconv_serve.nn import build_network, get_architecture

SIZE = 64
MARGIN = 16
"""Pixels to add on every side, since the transform cuts them off: it keeps `size / (size + 32)` of a photo."""
WIDTH = 0.25


def train_static(images: Path, weights: Path, *, depth: float, epochs: int) -> None:
    """Train a small static EfficientNet-Lite from nothing, and save its weights in Keras's format."""
    keras.utils.set_random_seed(0)
    architecture = get_architecture(
        "efficientnet-lite0", width_coefficient=WIDTH, depth_coefficient=depth, num_classes=10
    )
    network = build_network(architecture, input_size=SIZE)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # the default, 0.99, is too slow for so short a run
    classifier = keras.Model(network.inputs, network.output["logits"])
    whole = (SIZE + 2 * MARGIN,) * 2
    data = keras.utils.image_dataset_from_directory(images, image_size=whole, batch_size=32, seed=0, verbose=False).map(
        lambda pixels, digits: ((pixels[:, MARGIN:-MARGIN, MARGIN:-MARGIN] - 127) / 128, digits)
    )
    classifier.compile(
        keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    classifier.fit(data, epochs=epochs, shuffle=False, verbose=2)
    network.save_weights(weights)


def condconv(*arguments: object) -> str:
    """Run `condconv` and return what it prints."""
    command = [sys.executable, "-m", "condconv_serve", *(str(argument) for argument in arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Train a static network, import it as it is and upcycled, fine-tune both, and print how they did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="model store to write to")
    parser.add_argument("--static-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--depth", type=float, default=1.0, help="depth coefficient of the network")
    parser.add_argument("--no-comparison", action="store_true", help="leave out the network without experts")
    arguments = parser.parse_args()
    store = ("--model-store", arguments.store)
    arguments.store.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as directory:
        train, test = write_digits(Path(directory) / "digits", size=SIZE, margin=MARGIN)
        weights, labels = Path(directory) / "static.weights.h5", Path(directory) / "labels.txt"
        labels.write_text("\n".join(str(digit) for digit in range(10)))
        train_static(train, weights, depth=arguments.depth, epochs=arguments.static_epochs)

        parameters = {"width_coefficient": WIDTH, "depth_coefficient": arguments.depth, "image_size": SIZE}
        overrides = [text for name, value in parameters.items() for text in ("--override", f"{name}={value}")]
        given = ("--labels", labels, "--transform", "pillow", *overrides, *store)
        if not arguments.no_comparison:
            condconv("models", "import", weights, "--architecture", "efficientnet-lite0", "--name", "static", *given)
        condconv(
            *("models", "import", weights, "--architecture", "efficientnet-lite0-condconv-4e", "--name", "upcycled"),
            *("--upcycle", "--experts", 4, "--upcycle-noise", 0.5, *given),
        )
        figures: dict[str, Any] = {}
        for name in ("upcycled",) if arguments.no_comparison else ("static", "upcycled"):
            started = time.monotonic()
            printed = condconv(
                *("models", "finetune", name, "--name", f"{name}-tuned", "--data", train, "--validation-data", test),
                *("--epochs", arguments.epochs, "--learning-rate", 1e-3, "--no-mirror", "--json", *store),
            )
            figures[name] = json.loads(printed) | {"seconds": round(time.monotonic() - started)}

    for name, run in figures.items():
        start, best = (run["epochs"][number]["validation"] for number in (0, run["best_epoch"]))
        print(
            f"{name}: accuracy {start['accuracy']:.1%} -> {best['accuracy']:.1%}, loss {start['loss']:.3f} -> "
            f"{best['loss']:.3f} (epoch {run['best_epoch']}, {run['seconds']} s)"
        )
        for block in best["entropy"]:
            print(
                f"  {block}: routing entropy {start['entropy'][block]:.3f} -> {best['entropy'][block]:.3f}, variance "
                f"between digits {start['between_classes'][block]:.1%} -> {best['between_classes'][block]:.1%}"
            )


if __name__ == "__main__":
    main()
