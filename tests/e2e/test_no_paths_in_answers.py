"""No answer tells where the server's files lie, whichever route is asked and whatever has happened to the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from condconv_serve.store.aliases import ALIASES
from condconv_serve.store.bundle import MANIFEST, WEIGHTS
from tests import pictures
from tests.e2e.live import MODEL
from tests.e2e.server import ROOT, Server
from tests.e2e.tiny_models import write_fake

PHOTO = pictures.jpeg(pictures.photo("coffee", (60, 40)))
PLACES = {"name": MODEL, "alias": "stable", "block": "block_0", "expert": "0", "index": "0", "request_id": "x"}
VERSIONS = ("1", "2", "3")
"""The one that is served, one that isn't, and one that isn't there."""


def answers(client: httpx.Client) -> Iterator[tuple[str, httpx.Response]]:
    """Ask every route of the document, for each version where it names one; with what it was and what came."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            for version in VERSIONS if "{version}" in path else ("2",):
                place = path.format(**PLACES, version=version)
                body = {"json": {"versions": {"2": 1}}} if method == "put" else {}
                if method == "post" and "models" not in path:
                    body = {"content": PHOTO}  # type: ignore[dict-item]
                yield f"{method} {place}", client.request(method, place, **body)  # type: ignore[arg-type]


class Store:
    """A model store to which things happen, each of which can be undone."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store"
        self._away = directory / "away"

    def gone(self, place: str) -> None:
        (self.path / place).rename(self._away)

    def a_file(self, place: str) -> None:
        self.gone(place)
        (self.path / place).write_text("nothing")

    def a_directory(self, place: str) -> None:
        self.gone(place)
        (self.path / place).mkdir()

    def undo(self, place: str) -> None:
        target = self.path / place
        if target.is_dir():
            target.rmdir()
        target.unlink(missing_ok=True)
        self._away.rename(target)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("secret"))
    for version in (1, 2):
        write_fake(store.path, MODEL, version)
    (store.path / MODEL / ALIASES).write_text('{"aliases": {"stable": {"versions": {"2": 1}}}}')
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with Server(model_store=store.path, served_versions=1, tracebacks=True) as running:
        yield running


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("gone", ""),
        ("a_file", ""),
        ("gone", MODEL),
        ("a_file", MODEL),
        ("gone", f"{MODEL}/2"),
        ("a_file", f"{MODEL}/2/{MANIFEST}"),
        ("a_directory", f"{MODEL}/2/{MANIFEST}"),
        ("a_file", f"{MODEL}/2/{WEIGHTS}"),
        ("a_directory", f"{MODEL}/2/{WEIGHTS}"),
        ("a_file", f"{MODEL}/{ALIASES}"),
        ("a_directory", f"{MODEL}/{ALIASES}"),
    ],
)
def test_no_answer_tells_where_files_lie(what: str, place: str, server: Server, store: Store) -> None:
    secrets = re.compile("|".join(map(re.escape, (str(store.path.parent), store.path.parent.name, str(ROOT)))))
    getattr(store, what)(place)
    try:
        seen = dict(answers(server.client))
    finally:
        store.undo(place)
    for asked, answer in seen.items():
        shown = f"{answer.headers}\n{answer.text}"
        assert not secrets.search(shown), f"{asked}: {shown}"
        assert answer.status_code < 500 or answer.status_code == 503, f"{asked}: {shown}"
    if place == "":
        for asked in ("post /routing/ablation", f"post /models/{MODEL}/versions/2/load"):
            assert seen[asked].json()["slug"] == "store_unavailable", asked
        assert seen["post /predict"].status_code == 200, "what is loaded is served"
