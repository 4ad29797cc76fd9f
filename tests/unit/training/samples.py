"""Small data sets on disk, and small networks to train with them."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
from keras import layers
from PIL import Image

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import CondConv2D
from condconv_serve.training import Description, save_bundle

PREPROCESSING = Preprocessing(transform="pillow", image_size=32, crop_padding=0)
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def write_images(directory, counts, *, seed=0):
    """Noisy images of one colour per class, some darker than others, in a folder per class."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = np.array(COLOURS.get(name, (120, 120, 120))) * rng.uniform(0.5, 1)
            pixels = np.clip(colour + rng.normal(0, 50, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return directory


def small_network(classes=3, *, experts=(3, 2), seed=0):
    """Two CondConv blocks on 32 pixels."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(x))
    for number, count in enumerate(experts):
        name = f"block_{number}"
        router = layers.Dense(count, activation="sigmoid", name=f"{name}_routing")
        routing = router(layers.GlobalAveragePooling2D()(x))
        x = CondConv2D(8, 1, count, strides=2, activation="relu", name=f"{name}_conv")(x, routing)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x))


def save_small(store, *, name="small", labels=("a", "b", "c"), **options):
    """A bundle of the small network; it is built once, and copied whenever it is asked for."""
    shelf = _small_bundle(name, tuple(labels), tuple(options.items()))
    path = Path(store) / name / "1"
    shutil.copytree(Path(shelf.name) / name / "1", path)
    return path


@cache
def _small_bundle(name, labels, options):
    shelf = TemporaryDirectory()  # goes with the cache, at the end of the tests
    save_bundle(
        small_network(len(labels), **dict(options)),
        shelf.name,
        name=name,
        labels=labels,
        preprocessing=PREPROCESSING,
        description=Description(licence="MIT"),
    )
    return shelf
