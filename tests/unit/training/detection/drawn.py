"""Drawn photos with their annotations, and networks that are small enough to learn them in seconds."""

import json
from dataclasses import replace

import keras
import numpy as np
from PIL import Image

from condconv_serve.domain.manifest import PreprocessingSpec, Provenance
from condconv_serve.nn import Family, build_network
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.families import to_manifest
from condconv_serve.nn.inverted import InvertedStage
from condconv_serve.nn.inverted_build import build_inverted
from condconv_serve.nn.spec import last_blocks
from condconv_serve.store import NewBundle, write_bundle
from tests.unit.store.samples import LABELS

COLOURS = {"blue": (40, 60, 220), "red": (220, 50, 40)}
WIDTH, HEIGHT = 96, 72


_STAGES = (
    InvertedStage(1, 3, 2, 1, 8),
    InvertedStage(1, 3, 2, 4, 16),
    InvertedStage(1, 3, 2, 4, 24),
    InvertedStage(1, 3, 2, 4, 32),
)
STATIC = EfficientNetSpec(name="deep", stages=_STAGES, stem=8, head=16, image_size=64, num_classes=len(LABELS))
CONDCONV = replace(STATIC, name="deep-condconv-4e", num_experts=4, condconv=last_blocks(1, of=4))
FAMILY = Family("deep", (STATIC, CONDCONV), build_inverted)


def draw(directory, count, *, seed=0, name="boxes.json"):
    """Photos of grey noise, each with a rectangle of either colour; the last one shows nothing."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        pixels = rng.normal(120, 15, (HEIGHT, WIDTH, 3))
        images.append({"id": number, "file_name": f"{number:02}.png", "width": WIDTH, "height": HEIGHT})
        for category, colour in enumerate(COLOURS.values()) if number < count - 1 else ():
            width, height = rng.integers(20, 40, 2).tolist()
            # One in each half, so that neither hides the other.
            left = int(rng.integers(0, WIDTH // 2 - width)) + (number + category) % 2 * (WIDTH // 2)
            top = int(rng.integers(0, HEIGHT - height))
            pixels[top : top + height, left : left + width] = colour
            box = [left, top, width, height]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category, "bbox": box})
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(directory / f"{number:02}.png")
    categories = [{"id": category, "name": colour} for category, colour in enumerate(COLOURS)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (directory / name).write_text(json.dumps(document))
    return directory


def save_classifier(store, spec=STATIC, *, name="classifier"):
    """A bundle of a network with fresh weights, always the same."""
    keras.utils.set_random_seed(0)
    network = build_network(spec)
    return write_bundle(
        store,
        NewBundle(
            name=name,
            version="1",
            architecture=to_manifest(spec),
            preprocessing=PreprocessingSpec(transform="pillow", image_size=64, mean=(127,) * 3, std=(64,) * 3),
            weights={variable.path: np.array(variable) for variable in network.weights},
            labels=LABELS,
            provenance=Provenance(source="a test", method="fresh"),
            licence="MIT",
            model_card="# A test\n",
        ),
    )
