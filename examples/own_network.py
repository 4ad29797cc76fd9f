"""Your own network with CondConv layers: build it, train it with `fit`, save it as a bundle, and serve it.

python examples/own_network.py models/     then     condconv serve --model-store models/
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
from digits import write_digits
from keras import layers

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
from condconv_serve.training import save_bundle

SIZE = 32
# Pixels as they are: the network scales them itself, in its first layer.
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE, crop_padding=0, mean=(0, 0, 0), std=(1, 1, 1))


def build() -> keras.Model:
    """A small classifier of ten classes; its two blocks have four experts and two."""
    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    x = layers.RandomTranslation(0.1, 0.1)(x)  # in training only
    x = layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    routing_weights = layers.Dense(4, activation="sigmoid", name="first_routing")(layers.GlobalAveragePooling2D()(x))
    x = CondConv2D(48, 3, num_experts=4, strides=2, padding="same", use_bias=False)(x, routing_weights)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    routing_weights = layers.Dense(2, activation="sigmoid", name="second_routing")(layers.GlobalAveragePooling2D()(x))
    x = DepthwiseCondConv2D(3, num_experts=2, strides=2, padding="same")(x, routing_weights)
    x = CondConv2D(64, 1, num_experts=2, use_bias=False)(x, routing_weights)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    x = layers.Dropout(0.1)(layers.Flatten()(x))
    return keras.Model(pixels, layers.Dense(10, activation="softmax")(x), name="own_network")


def main() -> None:
    """Train, save, and classify one image with what was saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="model store to write to")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        train, test = write_digits(Path(directory), size=SIZE)
        keras.utils.set_random_seed(0)
        given = {"image_size": (SIZE, SIZE), "batch_size": 64, "verbose": False}
        images = keras.utils.image_dataset_from_directory(train, seed=0, **given)
        held_back = keras.utils.image_dataset_from_directory(test, shuffle=False, **given)
        model = build()
        model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(images, epochs=arguments.epochs, validation_data=held_back, shuffle=False, verbose=2)

        path = save_bundle(
            model,
            arguments.store,
            name="digits",
            labels=[str(digit) for digit in range(10)],
            preprocessing=PREPROCESSING,
        )
        print(f"wrote {path}")
        photo = sorted((test / "7").iterdir())[0]
        command = ["predict", str(photo), "--model", "digits", "--model-store", str(arguments.store), "--top-k", "2"]
        subprocess.run([sys.executable, "-m", "condconv_serve", *command], check=True)


if __name__ == "__main__":
    main()
