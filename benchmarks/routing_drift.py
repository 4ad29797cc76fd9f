"""Does drift tell shifted images from a mere resample? Justifies the alert's threshold.

A random half of the photographs makes the reference profile, images of the other half, as they are or changed, are the
live traffic; many times over. As they are, no block should alarm; changed, they should move.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import report
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from condconv_serve.bootstrap import load_model, plan_engines
from condconv_serve.domain import Pixels, ServedModel
from condconv_serve.imaging import model_row
from condconv_serve.inputs.files import expand
from condconv_serve.routing.drift import PSI_ALERT, DriftMeter
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.tally import Tally
from condconv_serve.settings import Settings
from condconv_serve.store import Catalog, open_bundle

COLUMNS = ("psi_median", "psi_95", "js_median", "of_alert_median", "of_alert_largest")
OTHER_DOMAIN = [
    "brick",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "microaneurysms",
    "moon",
    "page",
    "retina",
    "text",
    "logo",
    "horse",
]


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def noise(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    noisy = pixels + np.random.default_rng(0).normal(0, 40, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "grey": grey,
    "blurred, radius 2": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "blurred, radius 6": lambda image: image.filter(ImageFilter.GaussianBlur(6)),
    "rotated by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "half as bright": lambda image: image.point(lambda value: value // 2),
    "noise of 40 levels": noise,
}


def routed(model: ServedModel, rows: list[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Routing weights and predicted classes."""
    outputs = [model.engine(np.stack(rows[start : start + 4])) for start in range(0, len(rows), 4)]
    return (
        np.concatenate([output["routing"] for output in outputs]),
        np.concatenate([output["logits"].argmax(axis=1) for output in outputs]),
    )


def other_domain(size: int, count: int) -> list[Pixels]:
    """Random square crops of textures, scans, the sky, and text."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        picture = getattr(skimage.data, OTHER_DOMAIN[number % len(OTHER_DOMAIN)])()
        picture = (picture * 255).astype(np.uint8) if picture.dtype == bool else picture
        image = Image.fromarray(picture).convert("RGB")
        side = int(min(image.size) * rng.uniform(0.4, 1))
        left, top = rng.integers(0, image.width - side + 1), rng.integers(0, image.height - side + 1)
        rows.append(np.asarray(image.crop((left, top, left + side, top + side)).resize((size, size))))
    return rows


def judge(live: Tally, meter: DriftMeter) -> tuple[float, float, float, bool]:
    """The largest PSI and JS of all blocks, the largest PSI as a share of what alarms, and whether any does."""
    blocks = meter.measure(live)
    return (
        max(b.psi for b in blocks),
        max(b.js for b in blocks),
        max(b.psi / b.alert_above for b in blocks),
        any(b.alert for b in blocks),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", help="files or directories, a few hundred photographs of one source")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    settings = Settings(engine="tensorflow")
    bundle = open_bundle(Catalog(settings.model_store).find("efficientnet-lite0-condconv-4e"))
    model = load_model(bundle, plan_engines(settings))
    rows = [model_row(file.read_bytes(), model, max_pixels=10**8).row for file in expand(options.photos)]
    images = [Image.fromarray(row) for row in rows]
    found = {name: routed(model, [np.asarray(change(image)) for image in images]) for name, change in CHANGES.items()}
    found["other domain"] = routed(model, other_domain(model.info.preprocessing.image_size, len(rows)))
    half, layout = len(rows) // 2, model.info.routing
    results = []
    for live in (n for n in (30, 60, 125, 500) if n <= half):
        for name, (routing, classes) in found.items():
            rng = np.random.default_rng(1)
            outcomes = []
            for _ in range(options.repeats):
                order = rng.permutation(len(rows))
                reference = profile_of(found["none"][0][order[:half]], found["none"][1][order[:half]], layout)
                meter = DriftMeter(reference, layout)
                chosen = order[half : half + live]
                outcomes.append(judge(Tally.of(routing[chosen], classes[chosen], layout), meter))
            psi, js, share, alert = (np.array(column, float) for column in zip(*outcomes, strict=True))
            results.append(
                {
                    "images": name,
                    "live": live,
                    "psi_median": float(np.median(psi)),
                    "psi_95": float(np.quantile(psi, 0.95)),
                    "js_median": float(np.median(js)),
                    "of_alert_median": float(np.median(share)),
                    "of_alert_largest": float(share.max()),
                    "alerts": float(alert.mean()),
                }
            )
    header = ("images", "live", "PSI", "95 %", "JS", "PSI / limit", "largest", "alerts")
    print(
        report.table(
            header,
            [
                (
                    r["images"],
                    str(r["live"]),
                    *(f"{r[column]:.2f}" for column in COLUMNS),
                    f"{r['alerts']:.1%}",
                )
                for r in results
            ],
        )
    )
    report.save(
        "routing_drift",
        {
            "photos": len(rows),
            "reference": half,
            "repeats": options.repeats,
            "psi_alert": PSI_ALERT,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
