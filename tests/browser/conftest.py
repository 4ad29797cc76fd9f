"""Chromium, driven by Playwright, in front of a real server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import pictures
from tests.e2e.server import Server

if find_spec("playwright") is None:  # only `make test-browser` installs it
    collect_ignore_glob = ["test_*.py"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 320, "height": 640}
BODY_LIMIT = 2 * 2**20
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Directory that pictures of the page are kept in; none if unset."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server with the embedded model, for tests that leave it as it was."""
    with Server(real=True, max_body_bytes=BODY_LIMIT) as running:
        yield running


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page of a server in a fresh context, and see to it that it does nothing that it shouldn't.

    No errors in scripts, no violations of the content security policy, no request to anywhere else.
    """
    contexts, wrong = [], []

    def open_page(
        server: Server,
        *,
        until: str | None = "ready",
        permissions: list[str] | None = None,
        path: str = "/",
        **options: Any,
    ) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, "permissions": permissions or []} | options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if unexpected(message) else None)
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((f"{server.url}/", "blob:", "data:")) else wrong.append(request.url)
            ),
        )
        page.goto(server.url + path)
        if until:
            page.wait_for_selector(f"#state[data-state={until}]")
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            # A handler that answers while its page goes away would raise in the test after this one.
            page.unroute_all(behavior="wait")
        context.close()
    assert wrong == []


def unexpected(message: Any) -> bool:
    """Whether a line of the console is more than the browser's own note of a refused request."""
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text


@pytest.fixture
def photograph(tmp_path: Path) -> Callable[..., Path]:
    """Write a photograph as a JPEG file."""

    def write(name: str = "coffee", size: tuple[int, int] = (300, 200)) -> Path:
        file = tmp_path / f"{name}.jpg"
        file.write_bytes(pictures.jpeg(pictures.photo(name, size)))
        return file

    return write


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Keep a picture of the page, if asked for by SCREENSHOTS."""

    def keep(page: Any, name: str) -> None:
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)

    return keep
