"""Static networks that become networks with experts, and real ImageNet weights."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from condconv_serve.imaging import transform
from condconv_serve.nn import get_architecture
from condconv_serve.runtime.loading import load_model, load_network
from condconv_serve.store import open_bundle
from condconv_serve.store.importers import Upcycling
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from tests.golden import FAMILIES, needs_families
from tests.parity.families import FULL_SIZE, TINY, FamilyGolden, pixels_of
from tests.parity.seeded import waves
from tests.unit.store.samples import PLAN

pytestmark = pytest.mark.tensorflow

PHOTOS = Path(os.environ.get("EVAL_DIR") or FAMILIES.parent / "default_model" / "eval")
RESNET = next(golden for golden in FULL_SIZE if golden.key == "static/timm_resnet50")
STATIC = {golden.architecture: golden for golden in TINY if not golden.architecture.startswith("condconv")}


@pytest.mark.parametrize(
    ("golden", "target", "noise"),
    [
        (STATIC["mobilenet-v1"], "condconv-mobilenet-v1-8e", 0.1),
        (STATIC["mobilenet-v2"], "condconv-mobilenet-v2-8e-wide", 0.0),
        (STATIC["mnasnet-a1"], "condconv-mnasnet-a1-8e", 0.0),
        pytest.param(RESNET, "condconv-resnet-50-8e", 0.1, marks=(pytest.mark.full_parity, needs_families)),
    ],
    ids=str,
)
def test_upcycled_networks_answer_as_the_static_reference(
    golden: FamilyGolden, target: str, noise: float, tmp_path: Path
) -> None:
    request = ImportRequest(
        source=golden.write(tmp_path),
        architecture=target,
        name="upcycled",
        overrides={**golden.overrides, "num_experts": 3, "image_size": golden.spec["image_size"]},
        upcycling=Upcycling(noise=noise),
    )
    bundle = open_bundle(import_bundle(request, store=tmp_path / "store"))
    preprocessing = bundle.manifest.preprocessing
    pixels = pixels_of(preprocessing.image_size) if golden.directory == FAMILIES else waves()
    mean, std = (np.asarray(channels, np.float32) for channels in (preprocessing.mean, preprocessing.std))
    found = load_network(bundle)((pixels - mean) / std, training=False)
    expected = golden.stored["logits"]
    assert np.abs(np.asarray(found["logits"]) - expected).max() < 5e-5 * np.abs(expected).max()
    routing = np.stack(list(found["routing"].values()), axis=1)
    assert routing.shape == (4, len(get_architecture(target).condconv), 3)  # type: ignore[attr-defined]
    np.testing.assert_allclose(routing, 1 / 3, rtol=1e-6)


def opened(file: Path) -> Image.Image:
    with Image.open(file) as photo:
        return photo.convert("RGB")


@pytest.mark.full_parity
@needs_families
@pytest.mark.parametrize(
    ("file", "name", "overrides", "top1", "top5"),
    [
        ("mobilenet_v1_0.25_128_quant", "mobilenet-v1", {"width_coefficient": 0.25, "image_size": 128}, 0.416, 0.704),
        ("mobilenet_v1_0.5_160_quant", "mobilenet-v1", {"width_coefficient": 0.5, "image_size": 160}, 0.656, 0.856),
        ("mobilenet_v2_1.0_224_quant", "mobilenet-v2", {}, 0.836, 0.956),
    ],
)
def test_real_weights(
    file: str, name: str, overrides: dict[str, Any], top1: float, top5: float, tmp_path: Path
) -> None:
    """Keras Applications' layout; accuracy with the transform that the importer chose; and with experts as before."""
    answers = []
    for target, upcycling in ((name, None), (f"condconv-{name}-8e", Upcycling())):
        request = ImportRequest(
            source=FAMILIES / "weights" / f"{file}.h5",
            architecture=target,
            name=target,
            overrides=overrides,
            upcycling=upcycling,
        )
        model = load_model(open_bundle(import_bundle(request, store=tmp_path)), PLAN)
        preprocessing = model.info.preprocessing
        rows = pixels_of(preprocessing.image_size).astype(np.uint8)
        answers.append(np.asarray(model.engine(rows)["logits"]))
        if upcycling is None and PHOTOS.is_dir():
            photos = list(csv.DictReader((PHOTOS / "labels.csv").read_text(encoding="utf-8").splitlines()))
            files = {path.name: path for path in PHOTOS.rglob("*.jpg")}
            made = [transform(opened(files[photo["file"]]), preprocessing) for photo in photos]
            logits = np.concatenate([model.engine(np.stack(made[i : i + 8]))["logits"] for i in range(0, len(made), 8)])
            classes = np.asarray([int(photo["imagenet_index"]) for photo in photos])
            best = np.argsort(-logits, axis=1)[:, :5]
            assert (best[:, 0] == classes).mean() == pytest.approx(top1, abs=0.004)
            assert (best == classes[:, None]).any(axis=1).mean() == pytest.approx(top5, abs=0.004)
        model.engine.close()
    with np.load(FAMILIES / "weights" / "golden.npz") as stored:
        expected = stored[f"logits/{file}"]
    largest = np.abs(expected).max()
    assert np.abs(answers[0] - expected).max() < 1e-5 * largest
    assert np.abs(answers[1] - answers[0]).max() < 1e-5 * largest
