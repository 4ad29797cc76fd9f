"""A server that starts with a store of which some is broken: it says what, and answers nothing by guessing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from condconv_serve.store.aliases import ALIASES, set_alias
from condconv_serve.store.default import set_default
from tests import pictures
from tests.e2e.server import Server, assert_problem, sample_name, wait_for
from tests.e2e.tiny_models import answered_by, write_fake

PHOTO = pictures.jpeg(pictures.photo("coffee", (60, 40)))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The default model is well, the aliases of `cut` can't be read, and nothing of `broken` can be loaded."""
    store = tmp_path / "secret"
    write_fake(store, "well", 1)
    for version in (1, 2):
        write_fake(store, "cut", version)
    set_alias(store, "cut", "default", {"1": 1})
    text = (store / "cut" / ALIASES).read_text()
    (store / "cut" / ALIASES).write_text(text[: len(text) // 2])
    (write_fake(store, "broken", 1) / "labels.json").write_text("[]")
    return store


def test_what_is_well_is_answered_and_what_is_not_is_refused(store: Path) -> None:
    with Server(model_store=store, store_poll_interval=1, until_ready=False) as server:
        wait_for(lambda: "not ready: " in server.log and has_heard(server))
        check_answers(server, store)
        check_readiness(server)
        repair(store)
        wait_for(server.is_ready)
        assert answered_by(server.client.post("/predict?model=cut&top_k=1", content=PHOTO)) == "1"
        assert_problem(server.client.post("/predict?model=broken", content=PHOTO), 404, "model_not_found")
        # Both are told at the end of a look at the store.
        wait_for(lambda: "problems" not in server.client.get("/readyz").json())
        wait_for(lambda: "INFO    ready" in server.log)


def has_heard(server: Server) -> bool:
    """Whether the server says what is broken. With workers, a front hears of it a moment after the log does."""
    cut = server.client.post("/predict?model=cut", content=PHOTO).text
    return "aliases.json" in cut and "labels.json" in server.client.get("/readyz").text


def check_answers(server: Server, store: Path) -> None:
    client = server.client
    assert client.post("/predict", content=PHOTO).json()["model"] == {"name": "well", "version": "1"}
    assert answered_by(client.post("/predict?model=cut&version=2&top_k=1", content=PHOTO)) == "2"
    asked = [
        (name, method, f"{route}{'&' if '?' in route else '?'}model={name}")
        for name in ("cut", "broken")
        for method, route in (
            ("POST", "/predict"),
            ("POST", "/predict?version=stable"),
            ("POST", "/routing"),
            ("POST", "/routing/ablation"),
            ("GET", "/routing"),
            ("GET", "/routing/classes/1"),
            ("GET", "/routing/experts/block_4/1"),
            ("GET", "/routing/state"),
            ("POST", "/routing/reset"),
        )
    ]
    asked += [("broken", "POST", "/predict?model=broken&version=1")]
    asked += [(name, "GET", f"/models/{name}{more}") for name in ("cut", "broken") for more in ("", "/aliases")]
    reasons = {"cut": "cut: aliases.json is not valid JSON", "broken": "broken/1: labels.json has 2 bytes"}
    for name, method, place in asked:
        response = client.request(method, place, content=PHOTO if method == "POST" else None)
        assert_problem(response, 503, "model_unavailable", reasons[name])
        # A file that is too short may still be being copied.
        assert response.headers["retry-after"] == {"cut": "30", "broken": "5"}[name]
        assert store.name not in response.text
    for place in ("/predict?model=none", "/predict?model=broken&version=7", "/predict?model=cut&version=7"):
        assert client.post(place, content=PHOTO).status_code == 404, place


def check_readiness(server: Server) -> None:
    response = server.client.get("/readyz")
    assert_problem(response, 503, "not_ready", "broken/1: labels.json has 2 bytes")
    assert response.headers["retry-after"] == "5"
    metrics = server.metrics()
    assert metrics["condconv_ready"] == 0
    assert metrics[sample_name("condconv_store_unfollowed", file="cut/aliases.json")] == 1
    assert metrics[sample_name("condconv_store_unfollowed", file="well/aliases.json")] == 0


def repair(store: Path) -> None:
    whole = store.parent / "whole"
    (whole / "cut").mkdir(parents=True)
    set_alias(whole, "cut", "default", {"1": 1})
    (whole / "cut" / ALIASES).replace(store / "cut" / ALIASES)  # it is never without aliases
    shutil.rmtree(store / "broken")


def test_readiness_needs_only_what_it_is_told_to(store: Path) -> None:
    """And without a default model requests must name one."""
    (store / "default.json").unlink()
    with Server(model_store=store, ready_models="well,cut", store_poll_interval=1, until_ready=False) as server:
        wait_for(lambda: "not ready: cut: aliases.json is not valid JSON" in server.log)
        (store / "cut" / ALIASES).unlink()
        wait_for(server.is_ready)
        wait_for(lambda: len(server.client.get("/readyz").json()["problems"]) == 2)
        missing, broken = server.client.get("/readyz").json()["problems"]
        assert "No default model is set, and the model store holds: broken, cut, well." in missing
        assert "broken/1: labels.json has 2 bytes" in broken
        refused = server.client.post("/predict", content=PHOTO)
        assert_problem(refused, 503, "no_default_model", "condconv models default NAME")
        assert refused.headers["retry-after"] == "5"
        assert answered_by(server.client.post("/predict?model=well&top_k=1", content=PHOTO)) == "1"
        set_default(store, "cut")
        wait_for(lambda: server.client.post("/predict", content=PHOTO).status_code == 200)
