"""The page under a path prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.browser.steps import sample
from tests.e2e.server import Server
from tests.nginx import UNDER_A_PREFIX, nginx_servers

pytestmark = pytest.mark.browser

PREFIX = "/classify"


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """A server under a prefix: behind an nginx that passes it on, behind one that takes it off, and itself."""
    with Server(root_path=PREFIX) as server:
        backend = "127.0.0.1:{1}".format(*server.address)
        with nginx_servers(*(example.replace("127.0.0.1:8000", backend) for example in UNDER_A_PREFIX)) as urls:
            yield [*(url + PREFIX for url in urls), server.url]


@pytest.mark.parametrize("way", [0, 1])
def test_page_works(addresses: list[str], visit: Callable[..., Any], way: int) -> None:
    address = addresses[way]
    page = visit(SimpleNamespace(url=address))
    sample(page, "coffee")
    page.wait_for_selector("#live-map td")
    page.wait_for_function("() => document.querySelector('.chart .detail').textContent.includes('in all')")
    page.click("a[href=docs]")
    page.wait_for_selector(".opblock")


def test_links_within_the_page_stay_on_it(addresses: list[str], visit: Callable[..., Any]) -> None:
    """Without its slash at the end, a server can't tell the prefix from the page if a proxy takes it off."""
    _, _, server = addresses
    page = visit(SimpleNamespace(url=server), path=PREFIX)
    sample(page, "coffee")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("location.href") == f"{server}{PREFIX}/#main"
    assert page.locator("#gallery li").count() == 1
