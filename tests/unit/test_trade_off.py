"""The figures of `benchmarks/trade_off.py`: intervals, and which runs are compared. Training has tests of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {
    "network": "mobilenet-v1",
    "width": 0.25,
    "weights": None,
    "experts": 0,
    "seed": 0,
    "image_size": 96,
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "classes": None,
}


@pytest.fixture
def trade_off(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("trade_off")


def finished(right: int, **settings: Any) -> dict[str, Any]:
    cost = {"parameters": 1000, "multiply_adds": 5000}
    return {"settings": SETTINGS | settings, "right": right, "images": 10, "seconds": 3.0, "losses": [1.0], **cost}


def test_intervals_of_seeds_and_of_images(trade_off: Any) -> None:
    assert trade_off.accuracy_interval([0.8], images=10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert trade_off.accuracy_interval([1.0], images=10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    # Of very many images only the seeds are left: 4.30 * 0.1 / sqrt(3).
    seeds = [0.5, 0.6, 0.7]
    assert trade_off.accuracy_interval(seeds, images=10**9) == pytest.approx((0.6, 0.3517, 0.8483), abs=1e-4)
    assert trade_off.gain_interval(seeds) == pytest.approx((0.6, 0.3517, 0.8483), abs=1e-4)
    # Of equal seeds only the images are left.
    assert trade_off.accuracy_interval([0.8] * 3, images=10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    _, low, high = trade_off.accuracy_interval(seeds, images=10)
    assert low < 0.3517
    assert high > 0.8483
    assert trade_off.accuracy_interval([0.0, 1.0], images=10)[1:] == (0, 1)


def test_seeds_are_one_point_and_twins_are_compared_seed_by_seed(trade_off: Any) -> None:
    static = [finished(5, seed=0), finished(7, seed=1)]
    condconv = [finished(6, seed=0, experts=8), finished(9, seed=1, experts=8), finished(1, seed=2, experts=8)]
    alone = finished(4, experts=8, width=0.5)
    runs = [*static, *condconv, alone]
    points = trade_off.points_of(runs)
    assert [(p["width"], p["experts"], p["seeds"]) for p in points] == [
        (0.25, 0, [0, 1]),
        (0.25, 8, [0, 1, 2]),
        (0.5, 8, [0]),
    ]
    assert points[0]["score"] == pytest.approx(0.6)
    (gain,) = trade_off.gains_of(runs)
    assert (gain["width"], gain["experts"], gain["pairs"]) == (0.25, 8, 2), "only seeds that both have"
    assert gain["gain"] == pytest.approx(0.15)
    assert gain["low"] < 0 < gain["high"]


def test_detectors_are_compared_by_their_average_precision(trade_off: Any) -> None:
    """Which is no share of images, so that only seeds say how sure it is."""

    def detector(ap50: float, **settings: Any) -> dict[str, Any]:
        run = finished(0, **settings)
        del run["right"]
        return {**run, "ap50": ap50}

    seeds = [0.5, 0.6, 0.7]
    runs = [detector(ap50, seed=seed) for seed, ap50 in enumerate(seeds)]
    runs += [detector(ap50 + 0.1, seed=seed, experts=4) for seed, ap50 in enumerate(seeds)]
    static, condconv = trade_off.points_of(runs)
    assert [static[key] for key in ("score", "low", "high")] == pytest.approx([0.6, 0.3517, 0.8483], abs=1e-4)
    assert condconv["score"] == pytest.approx(0.7)
    (gain,) = trade_off.gains_of(runs)
    assert [gain[key] for key in ("gain", "low", "high")] == pytest.approx([0.1] * 3)
    assert trade_off.precision_interval([0.9]) == (0.9, 0.9, 0.9)


@pytest.mark.parametrize(("score", "runs"), [("accuracy", {}), ("AP50", {"ap50": 0.8})])
def test_the_table_names_the_score_and_the_gain(
    trade_off: Any, score: str, runs: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    static = [finished(8, seed=seed) | runs for seed in range(2)]
    condconv = [
        finished(9, seed=seed, experts=8) | {key: value + 0.1 for key, value in runs.items()} for seed in (0, 1)
    ]
    found = [*static, *condconv]
    trade_off._print(trade_off.points_of(found), trade_off.gains_of(found), score=score)
    printed = capsys.readouterr().out
    assert f" {score} |" in printed.splitlines()[0]
    assert "| 80.0% (" in printed
    assert "| 90.0% (" in printed
    assert "mobilenet-v1 0.25, scratch: CondConv gains +10.0% (+10.0% to +10.0%)" in printed
