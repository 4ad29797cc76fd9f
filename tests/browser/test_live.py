"""Live traffic, and the choice of model and version."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest

from condconv_serve.samples import SAMPLES
from tests.browser.steps import answer_to, cells, numbers, sample
from tests.e2e.server import Server, wait_for
from tests.e2e.tiny_models import write_tiny

pytestmark = pytest.mark.browser

ADMIN = {"X-API-Key": "admin-secret"}


def test_charts_and_load_are_those_of_the_traffic(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    page.wait_for_selector("#live-map td, #live-note:not(:empty)")
    content = SAMPLES[0].read_bytes()
    for _ in range(10):
        assert server.client.post("/predict", content=content).status_code == 200
    page.wait_for_function("() => /[1-9]/.test(document.querySelector('.chart .figure').textContent)")
    traffic, latency, batch, queue = page.locator(".chart").all()
    assert "Traffic" in traffic.inner_text()
    assert "95 % within" in latency.inner_text()
    assert "images per batch" in batch.inner_text()
    assert "0 being computed" in queue.inner_text()
    for chart in page.locator(".chart svg").all():
        assert ", " in (chart.get_attribute("aria-label") or "")
    page.select_option("#window", "all")
    live = server.client.get("/routing?window=all").json()
    page.wait_for_function(
        "images => document.getElementById('live-summary').textContent.includes(`: ${images} images in all time`)",
        arg=live["images"],
    )
    for kind in ("load", "mean", "deviation", "active"):
        page.select_option("#live-view", kind)
        expected = [[expert[kind] for expert in block["experts"]] for block in live["blocks"]]
        assert numbers(cells(page, "#live-map")) == [pytest.approx(row, abs=0.0051) for row in expected]
    assert page.locator("#drift tbody tr").count() == len(live["blocks"])
    assert page.locator("#frequent .label").first.inner_text() == live["classes"]["most_frequent"][0]["label"]


def test_drift_fits_a_phone(server: Server, visit: Callable[..., Any], picture: Callable[..., None]) -> None:
    page = visit(server, viewport={"width": 360, "height": 740})
    sample(page, "coffee")

    def drifting(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        for block in body["blocks"]:
            block["drift"] = {"psi": 1.234, "js": 0.567, "psi_by_chance": 0.1, "alert_above": 0.54, "alert": True}
        route.fulfill(response=answer, json=body)

    page.route(re.compile(r"/routing\?.*window=all"), drifting)
    page.select_option("#window", "all")
    page.wait_for_selector("#drift .flag")
    assert page.evaluate(
        "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.getElementById('drift'))"
    )
    picture(page, "phone-drift")


def test_nothing_is_asked_while_nobody_looks(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide = (
        "Object.defineProperty(document, 'hidden', {{ value: {0}, configurable: true }});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.evaluate(hide.format("true"))
    page.wait_for_timeout(1000)
    asked.clear()
    page.wait_for_timeout(7000)
    assert asked == []
    with page.expect_request("**/metrics"):
        page.evaluate(hide.format("false"))
    page.click("#pause")
    page.wait_for_timeout(1000)
    asked.clear()
    page.wait_for_timeout(7000)
    assert [url for url in asked if "/metrics" in url or "/routing" in url] == []


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two models, one with two versions and an alias."""
    store = tmp_path_factory.mktemp("store")
    for name, version in (("tiny", 1), ("tiny", 2), ("other", 5)):
        write_tiny(store, name, version)
    keys = {"keys": [{"name": "admin", "scopes": ["admin"], "sha256": sha256(b"admin-secret").hexdigest()}]}
    with Server(real=True, model_store=store, default_model="tiny", api_keys=json.dumps(keys)) as running:
        wait_for(lambda: running.client.post("/models/tiny/versions/1/load", headers=ADMIN).status_code == 200)
        answer = running.client.put("/models/tiny/aliases/stable", json={"version": "1"}, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        yield running


def test_model_version_and_alias_are_chosen(versions: Server, visit: Callable[..., Any]) -> None:
    page = visit(versions, until="locked")
    page.fill("#key", "admin-secret")
    page.click("#key-form [type=submit]")
    page.wait_for_selector("#state[data-state=ready]")
    assert page.locator("#model option").all_inner_texts() == ["other", "tiny"]
    assert page.input_value("#model") == "tiny"
    assert page.locator("#version option").all_inner_texts() == ["newest (2)", "stable (1)", "2", "1"]
    assert sample(page, "coffee")["model"] == {"name": "tiny", "version": "2"}
    assert page.inner_text("#answer-title").lower() == "class 2"
    for chosen, answers in (("stable", "1"), ("1", "1"), ("2", "2")):
        body = answer_to(page, lambda chosen=chosen: page.select_option("#version", chosen))
        assert body["model"]["version"] == answers
        page.wait_for_function(
            "best => document.getElementById('answer-title').textContent === best", arg=f"class {answers}"
        )
    body = answer_to(page, lambda: page.select_option("#model", "other"))
    assert body["model"] == {"name": "other", "version": "5"}
    assert page.locator("#version option").all_inner_texts() == ["newest (5)", "5"]
    page.wait_for_function("() => document.getElementById('live-summary').textContent.startsWith('other, version 5')")
