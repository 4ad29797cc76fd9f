"""The settings that commands start with, and photographs for them."""

from pathlib import Path

import pytest

from condconv_serve.settings import Settings
from tests.pictures import jpeg, photo


@pytest.fixture
def shipped_store(monkeypatch):
    """No settings from outside, and the project's own store."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(Path(__file__).parents[3] / "model_store"))
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "2")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A directory with photos, one of them in a folder, and a file that is none."""
    directory = tmp_path_factory.mktemp("photos")
    (directory / "more").mkdir()
    for place, name in (("coffee.jpg", "coffee"), ("cat.JPEG", "cat"), ("more/rocket.jpg", "rocket")):
        (directory / place).write_bytes(jpeg(photo(name, (300, 200))))
    (directory / "notes.txt").write_text("not an image")
    return directory
