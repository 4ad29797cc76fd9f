"""What the page says when something is refused, and how it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests import pictures
from tests.browser.conftest import BODY_LIMIT
from tests.browser.steps import answer_to, choose, problem, sample
from tests.e2e.server import Server

pytestmark = pytest.mark.browser

FILES = {
    "text": (
        lambda: b"This is no image.",
        ("Unsupported image format", "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and HEIC", "Save it as JPEG"),
    ),
    "half": (lambda: pictures.corrupt()["half_jpeg"], ("Corrupt image", "incomplete or damaged")),
    "empty": (lambda: b"", ("No image in the request", "The file is empty")),
    "many_pixels": (lambda: pictures.too_large()["png"], ("Image too large", "Scale it down")),
    "many_bytes": (lambda: bytes(BODY_LIMIT + 1), ("Request body too large", "Save it smaller")),
    "very_many_bytes": (lambda: bytes(12 * BODY_LIMIT), ("Request body too large", "Save it smaller")),
}


@pytest.mark.parametrize("kind", FILES)
def test_refused_file(server: Server, visit: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    content, says = FILES[kind]
    file = tmp_path / f"{kind}.jpg"
    file.write_bytes(content())
    page = visit(server)
    choose(page, file)
    words = problem(page)
    for text in says:
        assert text in words
    assert page.locator("#problem button").count() == 0, "another try would be refused as well"
    assert "null" not in words
    assert page.locator("#routing").is_hidden()
    assert page.locator("#gallery li").get_attribute("data-state") == "failed"
    assert page.inner_text("#announcer").startswith(f"{kind}.jpg: {says[0]}")
    assert page.locator("#banner").is_hidden()
    sample(page, "coffee")  # goes on as if nothing had been


def test_one_refused_of_several(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("No image.")
    page = visit(server)
    choose(page, photograph("coffee"), photograph("cat"), text)
    page.wait_for_function("() => document.querySelectorAll('#gallery li[data-state=done]').length === 2")
    page.wait_for_selector("#gallery li[data-state=failed]")
    assert page.locator("#gallery .name").all_inner_texts() == ["notes.txt", "coffee.jpg", "cat.jpg"]
    assert page.inner_text("#gallery-note") == "1 of 3 refused"
    assert page.inner_text("#answer-title").lower() == "espresso", "what was looked at stays"
    page.click("[aria-label='Remove notes.txt']")
    assert page.locator("#gallery-note").is_hidden()
    assert page.locator("#gallery .name").all_inner_texts() == ["coffee.jpg", "cat.jpg"]


def test_network_that_goes_and_comes_back(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(server)
    page.context.set_offline(True)
    choose(page, photograph("coffee"))
    page.wait_for_selector("#banner:not([hidden])")
    assert "can't be reached" in page.inner_text("#banner")
    assert page.inner_text("#state-text") == "out of reach"
    assert "goes on by itself" in problem(page)
    answer_to(page, lambda: page.context.set_offline(False))
    assert page.locator("#banner").is_hidden()
    assert page.inner_text("#state-text") == "ready"


def test_image_whose_connection_breaks_each_time(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(server)
    page.route("**/routing?*top_k*", lambda route: route.abort("connectionreset"))
    choose(page, photograph("coffee"))
    page.wait_for_selector("#gallery li[data-state=failed]")
    assert "can't be sent" in problem(page)
    page.unroute("**/routing?*top_k*")
    answer_to(page, lambda: page.click("#problem button"))


def test_server_that_still_loads_and_later_ends(visit: Callable[..., Any], photograph: Callable[..., Path]) -> None:
    with Server(fault="hold load", until_ready=False) as server:
        page = visit(server, until="waiting")
        choose(page, photograph("coffee"))
        loading = 120_000

        def load() -> None:
            server.fault()
            page.wait_for_selector("#state[data-state=ready]", timeout=loading)

        answer_to(page, load, timeout=loading)
        assert page.locator("#banner").is_hidden()
        server.stop()
        page.wait_for_selector("#banner:not([hidden])")
        assert "can't be reached" in page.inner_text("#banner")


def entry(name: str, **limits: int) -> dict[str, Any]:
    return {"name": name, "scopes": ["predict"], "sha256": sha256(f"{name}-secret".encode()).hexdigest()} | limits


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that wants keys."""
    keys = {"keys": [entry("user"), entry("slow", requests_per_minute=6)]}
    with Server(real=True, api_keys=json.dumps(keys)) as running:
        yield running


def give_key(page: Any, key: str) -> None:
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", key)
    page.click("#key-form [type=submit]")


def test_key_is_asked_for_kept_and_forgotten(
    guarded: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(guarded, until="locked")
    page.wait_for_selector("#key-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "key"
    page.click("#key-form [type=submit]")
    assert page.inner_text("#key-error") == "Enter a key, or cancel."
    for wrong in ("wrong", "schlüssel"):
        give_key(page, wrong)
        page.wait_for_function(
            "() => document.getElementById('key-error').textContent.startsWith('The key was refused')"
        )
    page.keyboard.press("Escape")
    choose(page, photograph("coffee"))
    page.click("#key-button")
    body = answer_to(page, lambda: give_key(page, "user-secret"))
    assert body["predictions"][0]["classes"][0]["label"] == "espresso"
    assert page.inner_text("#key-button") == "API key set"
    assert page.evaluate("Object.keys(localStorage)") == []
    page.reload()
    page.wait_for_selector("#state[data-state=ready]")
    other = page.context.new_page()
    other.goto(guarded.url)
    other.wait_for_selector("#key-dialog[open]")  # another tab has no key
    page.click("#key-button")
    page.click("#key-forget")
    page.wait_for_selector("#state[data-state=locked]")
    assert page.evaluate("Object.keys(sessionStorage)") == []


def test_key_that_has_used_up_its_requests(
    guarded: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    for _ in range(6):
        guarded.client.get("/models", headers={"X-API-Key": "slow-secret"})
        time.sleep(0.05)
    page = visit(guarded, until="locked")
    give_key(page, "user-secret")
    page.wait_for_selector("#state[data-state=ready]")
    page.evaluate("sessionStorage.setItem('condconv-api-key', 'slow-secret')")
    page.click("#key-button")
    give_key(page, "slow-secret")
    page.wait_for_selector("#banner:not([hidden])")
    assert "Too many requests with this API key" in page.inner_text("#banner")


def test_countdown_until_the_next_try(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(server)
    refused: list[bool] = []

    def full(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(True)
        body = {
            "slug": "queue_full",
            "title": "Queue full",
            "status": 429,
            "detail": "256 images are waiting.",
            "retry_after": 2.5,
        }
        route.fulfill(
            status=429, headers={"Retry-After": "3", "Content-Type": "application/problem+json"}, body=json.dumps(body)
        )

    page.route("**/routing?*top_k*", full)
    page.evaluate(
        """() => {
            window.said = "";
            const box = document.getElementById("problem");
            const note = () => { window.said += box.querySelector(".countdown")?.textContent ?? ""; };
            new MutationObserver(note).observe(box, { childList: true, characterData: true, subtree: true });
        }"""
    )

    def wait() -> None:
        choose(page, photograph("coffee"))
        for left in ("3 seconds", "1 second"):
            page.wait_for_function("words => window.said.includes(words)", arg=f"Trying again in {left}.")

    with page.expect_response(lambda response: "top_k" in response.url and response.status == 200):
        wait()
    page.wait_for_selector("#gallery li[data-state=done]")


def test_answer_that_is_no_problem_document(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(server)
    page.route("**/routing?*top_k*", lambda route: route.fulfill(status=413, body="<html>too big</html>"))
    choose(page, photograph("coffee"))
    assert "Answer 413" in problem(page)
