"""What `examples/ray_data.py` makes of answers, without Ray."""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from condconv_serve.imaging.formats import IMAGE_SUFFIXES

pytest.importorskip("pyarrow", reason="the example needs PyArrow: pip install pyarrow")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    return runpy.run_path(str(Path(__file__).parents[3] / "examples" / "ray_data.py"))


@pytest.fixture
def answers(example):
    """An actor, without a server, that finds cats in all photos but empty ones."""
    actor = object.__new__(example["Answer"])
    cat = SimpleNamespace(model="m/1", classes=[SimpleNamespace(label="cat", probability=0.5)], error=None)
    failed = SimpleNamespace(model=None, classes=[], error=SimpleNamespace(slug="missing_image"))
    actor._ask, actor._options = lambda photos: [cat if photo else failed for photo in photos], {}
    return lambda *photos: actor({"path": np.array(["p"] * len(photos), object), "bytes": np.array(photos, object)})


def test_batches_agree_on_types(example, answers):
    """Or nobody could read a folder of them: a column of nothing but nulls has no type of its own."""
    good, bad = answers(b"x"), answers(b"")
    assert good.schema == bad.schema == example["SCHEMA"]
    (row,) = good.to_pylist()
    assert row == {"path": "p", "model": "m/1", "label": "cat", "probability": 0.5, "error": None}
    (row,) = bad.to_pylist()
    assert row == {"path": "p", "model": None, "label": None, "probability": None, "error": "missing_image"}


def test_all_kinds_of_photos_are_taken(example):
    assert {f".{suffix}" for suffix in example["IMAGES"]} == IMAGE_SUFFIXES
