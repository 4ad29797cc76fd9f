"""What visitors do on the page, and what they see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def choose(page: Any, *files: Path) -> None:
    page.set_input_files("#files", list(files))


def sample(page: Any, name: str) -> dict[str, Any]:
    """Try a sample, and return what the service answered."""
    return answer_to(page, lambda: page.click(f"[data-sample='{name}.jpg']"))


def answer_to(page: Any, act: Any, *, timeout: float | None = None) -> dict[str, Any]:
    """Do something that sends an image, wait until the answer is shown, and return it; `timeout` is in milliseconds."""
    with page.expect_response(
        lambda response: "/routing?" in response.url and response.request.method == "POST", timeout=timeout
    ) as sent:
        act()
    assert sent.value.ok, sent.value.text()
    body: dict[str, Any] = sent.value.json()
    best = body["predictions"][0]["classes"][0]["label"]
    page.wait_for_function("best => document.getElementById('answer-title').textContent === best", arg=best)
    page.wait_for_selector("#routing:not([hidden])")
    return body


def cells(page: Any, grid: str = "#map") -> list[list[str]]:
    """The text of a heat map's cells."""
    found: list[list[str]] = page.evaluate(
        "grid => [...document.querySelectorAll(`${grid} tbody tr`)]"
        ".map(row => [...row.querySelectorAll('td[tabindex]')].map(cell => cell.textContent))",
        grid,
    )
    return found


def names(page: Any, grid: str = "#map") -> list[list[str]]:
    """What a heat map's cells are called by a screen reader."""
    found: list[list[str]] = page.evaluate(
        "grid => [...document.querySelectorAll(`${grid} tbody tr`)]"
        ".map(row => [...row.querySelectorAll('td[tabindex]')].map(cell => cell.getAttribute('aria-label')))",
        grid,
    )
    return found


def numbers(texts: Sequence[Sequence[str]]) -> list[list[float]]:
    return [[float(text.replace("\N{MINUS SIGN}", "-")) for text in row] for row in texts]


def problem(page: Any) -> str:
    """Wait for a refusal, and return its words."""
    page.wait_for_selector("#problem:not([hidden])")
    words: str = page.inner_text("#problem")
    return words


def scrolls_sideways(page: Any) -> bool:
    wide: bool = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return wide
