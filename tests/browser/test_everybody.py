"""Keyboards, screen readers, phones, dark rooms: axe-core finds nothing serious, and all works without a mouse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.steps import cells, choose, sample, scrolls_sideways
from tests.e2e.server import Server

pytestmark = pytest.mark.browser

VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": DESKTOP, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True, "is_mobile": True},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
}
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def assert_accessible(page: Any) -> None:
    """Check the page as it is with axe-core."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.wait_for_timeout(200)  # transitions of colours
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("tags => axe.run(document, { runOnly: { type: 'tag', values: tags } })", TAGS)
    violations = [
        (
            violation["id"],
            violation["impact"],
            [node["html"][:150] + " " + node["failureSummary"] for node in violation["nodes"][:3]],
        )
        for violation in found["violations"]
    ]
    assert violations == []
    assert len(found["passes"]) > 15


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_that_axe_finds(
    server: Server, visit: Callable[..., Any], picture: Callable[..., None], tmp_path: Path, view: str
) -> None:
    page = visit(server, **VIEWS[view])
    assert_accessible(page)
    assert not scrolls_sideways(page)
    picture(page, f"{view}-empty")
    sample(page, "chelsea")
    sample(page, "coffee")
    page.wait_for_selector("#live-map td")
    page.locator("#map td[tabindex]").nth(5).click()
    page.wait_for_selector(".outcome")
    page.mouse.move(0, 0)
    assert_accessible(page)
    assert not scrolls_sideways(page)
    picture(page, f"{view}-answer")
    page.select_option("#view", label="difference from chelsea.jpg")
    assert_accessible(page)
    picture(page, f"{view}-difference")
    page.select_option("#view", "effect")
    page.click("#ablate-all")
    page.wait_for_selector("#ablate-all", state="hidden")
    assert_accessible(page)
    assert not scrolls_sideways(page)
    picture(page, f"{view}-effect")
    file = tmp_path / "notes.txt"
    file.write_text("No image.")
    choose(page, file)
    page.wait_for_selector("#problem:not([hidden])")
    assert_accessible(page)
    assert not scrolls_sideways(page)
    picture(page, f"{view}-refused")
    page.click("#key-button")
    assert_accessible(page)
    picture(page, f"{view}-key")


def test_without_a_mouse(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)

    def active(script: str = "document.activeElement.id") -> Any:
        return page.evaluate(script)

    def tab_to(condition: str, presses: int = 40) -> None:
        for _ in range(presses):
            page.keyboard.press("Tab")
            if active(condition):
                assert active("getComputedStyle(document.activeElement).outlineStyle") != "none" or active() == "files"
                return
        pytest.fail(f"no way to {condition}")

    page.keyboard.press("Tab")
    assert active("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert active() == "main"
    tab_to("document.activeElement.id === 'files'")
    tab_to("document.activeElement.dataset.sample === 'coffee.jpg'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#map td[tabindex]")
    tab_to("document.activeElement.className === 'thumb'")
    tab_to("document.activeElement.className === 'remove'")
    tab_to("document.activeElement.id === 'more-classes'")
    tab_to("document.activeElement.id === 'view'")
    tab_to("document.activeElement.matches('#map td')")
    place = "document.activeElement.place.join()"
    for key, expected in (
        ("ArrowRight", "0,1"),
        ("ArrowDown", "1,1"),
        ("End", "1,3"),
        ("ArrowRight", "1,3"),
        ("Home", "1,0"),
        ("ArrowLeft", "1,0"),
        ("ArrowUp", "0,0"),
        ("Control+End", "7,3"),
        ("PageUp", "0,3"),
        ("Control+Home", "0,0"),
        ("ArrowDown", "1,0"),
    ):
        page.keyboard.press(key)
        assert active(place) == expected, key
    assert page.locator("#tooltip").inner_text() == active("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()
    page.keyboard.press("Enter")
    page.wait_for_selector(".outcome")
    assert active(place) == "1,0", "the focus stays where it was"
    assert page.inner_text("#announcer").startswith("Without expert 0 of block 9")
    tab_to("document.activeElement.closest('#expert-body') !== null", presses=2)
    page.keyboard.press("Shift+Tab")
    assert active(place) == "1,0", "one stop for the whole grid"
    tab_to("document.activeElement.id === 'window'")
    tab_to("document.activeElement.id === 'pause'")
    page.keyboard.press("Space")
    assert active("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab_to("document.activeElement.matches('#live-map td')")


def test_grid_is_one_for_screen_readers(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    tree = page.locator("#map").aria_snapshot()
    assert tree.startswith('- grid "Routing weights, blocks by experts')
    assert '- columnheader "expert 3"' in tree
    assert '- rowheader "block 8"' in tree
    assert 'gridcell "block 8, expert 0: weight 0.' in tree


def test_light_and_dark(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server, color_scheme="light")
    sample(page, "coffee")
    paper = "getComputedStyle(document.body).backgroundColor"
    cell = "getComputedStyle(document.querySelector('#map td')).backgroundColor"
    light = page.evaluate(paper), page.evaluate(cell)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"light => {cell} !== light", arg=light[1])
    dark = page.evaluate(paper), page.evaluate(cell)
    assert dark[0] != light[0]
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    assert (page.evaluate(paper), page.evaluate(cell)) == light
    page.reload()
    page.wait_for_selector("#state[data-state=ready]")
    assert page.evaluate(paper) == light[0], "the choice is kept"


def test_small_phone(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server, **VIEWS["phone"])
    sample(page, "coffee")
    assert len(cells(page)) == 8
    assert not scrolls_sideways(page)
    box = page.locator("#map").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    for target in page.locator("button:visible, select:visible, .button:visible").all():
        area = target.bounding_box()
        assert min(area["width"], area["height"]) >= 24, target.inner_text()  # WCAG 2.5.8
