"""Detectors on the page: boxes over the photo, the list beside it, thresholds, and what takes boxes away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import pictures
from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.steps import cells, choose, problem, scrolls_sideways
from tests.browser.test_everybody import VIEWS, assert_accessible
from tests.e2e.server import Server
from tests.e2e.tiny_models import write_colour_detector, write_fake

pytestmark = pytest.mark.browser

GREY, RED, GREEN, BLUE, PALE_RED = (128, 128, 128), (230, 40, 40), (40, 200, 40), (40, 40, 240), (190, 120, 120)
PLACES = {(1, 1): RED, (1, 6): GREEN, (4, 3): BLUE, (6, 6): RED, (6, 1): PALE_RED}
"""Which of the 8 x 8 patches of a scene have a colour, by row and column; the last one's score is 0.27."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A detector, which is the default model, and a classifier."""
    store = tmp_path_factory.mktemp("store")
    write_colour_detector(store)
    write_fake(store, "classes", 1)
    with Server(model_store=store) as running:
        yield running


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Path]:
    """Write a picture with coloured patches."""

    def write(
        name: str = "scene",
        size: tuple[int, int] = (640, 480),
        places: dict[tuple[int, int], tuple[int, int, int]] = PLACES,
        *,
        orientation: int = 1,
        suffix: str = "png",
    ) -> Path:
        width, height = size
        rows, columns = (np.arange(side) * 8 // side for side in (height, width))
        colours = np.full((8, 8, 3), GREY, np.uint8)
        for place, colour in places.items():
            colours[place] = colour
        pixels = colours[rows][:, columns]
        file = tmp_path / f"{name}.{suffix}"
        kind = {"jpg": "JPEG", "png": "PNG", "tiff": "TIFF", "webp": "WEBP"}[suffix]
        file.write_bytes(pictures.oriented(pixels, orientation, kind))
        return file

    return write


def detect(page: Any, act: Callable[[], Any]) -> dict[str, Any]:
    """Do something that sends an image, wait until its boxes are shown, and return the answer."""
    with page.expect_response(
        lambda response: "score_threshold" in response.url and "ablation" not in response.url
    ) as sent:
        act()
    assert sent.value.ok, sent.value.text()
    (prediction,) = sent.value.json()["predictions"]
    page.wait_for_selector("#objects-box:not([hidden])")
    return dict(prediction)


def shown(page: Any) -> list[tuple[str, float]]:
    """The objects in the list: label and score."""
    entries = page.locator("#objects li")
    return [
        (label, float(score))
        for label, score in zip(
            entries.locator(".label").all_inner_texts(), entries.locator(".value").all_inner_texts(), strict=True
        )
    ]


def marked(page: Any) -> list[list[int]]:
    """The numbers of the boxes that are marked, and of the entries."""
    found: list[list[int]] = page.evaluate(
        "['#boxes', '#objects'].map(group =>"
        " [...document.querySelectorAll(`${group} .marked`)].map(one => Number(one.dataset.number)))"
    )
    return found


def set_slider(page: Any, name: str, value: float) -> None:
    page.evaluate(
        """([name, value]) => {
            const field = document.getElementById(name);
            field.value = value;
            for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind));
        }""",
        [name, value],
    )


PICTURES: dict[str, dict[str, Any]] = {
    "upright": {"size": (640, 480)},
    "turned": {"size": (480, 640), "orientation": 6, "suffix": "jpg"},
    "mirrored": {"size": (640, 480), "orientation": 7},
    "turned.webp": {"size": (640, 480), "orientation": 8, "suffix": "webp"},
    "small": {"size": (40, 32)},
    "wide": {"size": (1600, 64)},
    "high": {"size": (64, 1600)},
    "without a preview": {"size": (320, 240), "suffix": "tiff"},
}
PHOTO = """() => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [80, 80];
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0, 80, 80);
    const [red, green, blue] = context.getImageData(15, 15, 1, 1).data;
    return [photo.naturalWidth, photo.naturalHeight, red > 150 && green < 100 && blue < 100 ? "red" : "turned"];
}"""
"""The photo's size, and what it shows in the patch (1, 1)."""


def test_boxes_lie_over_what_they_show(
    server: Server, visit: Callable[..., Any], scene: Callable[..., Path], picture: Callable[..., None]
) -> None:
    page = visit(server)
    for name, picture_of in PICTURES.items():
        file = scene(name, **picture_of)
        prediction = detect(page, partial(choose, page, file))
        whole = [found for found in prediction["detections"] if found["score"] > 0.5]
        page.wait_for_selector(f"#photo-name:text('{name}')")
        assert [(found["label"], round(found["score"], 2)) for found in whole] == shown(page), name
        assert page.inner_text("#answer-title") == "4 objects"
        assert [prediction["width"], prediction["height"]] == list(picture_of["size"])
        if name == "without a preview":
            page.wait_for_selector("#photo-none:not([hidden])")
        else:
            page.wait_for_selector("#photo:not([hidden])")
            page.wait_for_function("photo.complete")  # until then it shows the one before
            assert page.evaluate(PHOTO) == [*picture_of["size"], "red"], name
        # Also when the page is zoomed, and on a phone.
        for viewport in ({"width": 1280, "height": 900}, {"width": 640, "height": 450}, PHONE):
            page.set_viewport_size(viewport)
            over = page.locator("#stage").bounding_box()
            assert over["width"] / over["height"] == pytest.approx(prediction["width"] / prediction["height"], rel=0.02)
            for number, found in enumerate(whole):
                box = page.locator(f"#boxes [data-number='{number}']").bounding_box()
                corners = found["box_normalized"]
                expected = [
                    over[side] + over[extent] * corners[f"{axis}min"]
                    for side, extent, axis in (("x", "width", "x"), ("y", "height", "y"))
                ]
                assert [box["x"], box["y"]] == pytest.approx(expected, abs=0.6), name
                for extent in ("width", "height"):
                    assert box[extent] == pytest.approx(max(4, over[extent] / 8), abs=0.6), name
            assert not scrolls_sideways(page)
        page.set_viewport_size(DESKTOP)
        picture(page, f"boxes-{name}")


def test_box_and_entry_are_marked_together(
    server: Server, visit: Callable[..., Any], scene: Callable[..., Path]
) -> None:
    page = visit(server)
    detect(page, lambda: choose(page, scene()))
    for group, other in (("#boxes", "#objects"), ("#objects", "#boxes")):
        page.locator(f"{group} [data-number='2']").hover()
        assert marked(page) == [[2], [2]], f"and {other}"
        assert page.inner_text("#box-detail") == "red: 80 \N{MULTIPLICATION SIGN} 60 pixels at 480, 360"
        page.locator("#answer-title").hover()
        assert marked(page) == [[], []]
    page.focus("#boxes [tabindex='0']")
    assert marked(page) == [[0], [0]]
    for key, number in (("ArrowDown", 1), ("ArrowRight", 2), ("End", 3), ("ArrowDown", 3), ("ArrowUp", 2), ("Home", 0)):
        page.keyboard.press(key)
        assert marked(page) == [[number], [number]], key
        assert page.evaluate("document.activeElement.parentElement.id") == "boxes"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert marked(page) == [[], []]
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.closest('#objects') === null"):
        page.keyboard.press("Tab")
    assert marked(page) == [[1], [1]], "one stop, where the other one was"
    assert page.locator("#boxes").aria_snapshot().startswith('- listbox "Boxes over the image, highest score first"')


def test_thresholds(server: Server, visit: Callable[..., Any], scene: Callable[..., Path]) -> None:
    page, file = visit(server), scene()
    detect(page, lambda: choose(page, file))
    for score, at_most in ((0.5, 100), (0.2, 100), (0.2, 2), (0.02, 100), (0.7, 100), (0.9, 100)):
        if score < 0.05:
            detect(page, partial(set_slider, page, "score_threshold", score))
        else:
            set_slider(page, "score_threshold", score)
        set_slider(page, "max_detections", at_most)
        asked = {"score_threshold": score, "max_detections": at_most}
        answer = server.client.post("/detect", params=asked, content=file.read_bytes()).json()
        expected = [(found["label"], round(found["score"], 2)) for found in answer["predictions"][0]["detections"]]
        assert shown(page) == expected, asked
        assert page.locator("#boxes .box").count() == len(expected)
        assert page.inner_text("#score_threshold-value") == f"{score:.2f}"
        assert ("These are the best 2 of 5." in page.inner_text("#objects-box")) == (at_most == 2)
    assert page.inner_text("#answer-title").lower() == "nothing found"
    assert page.inner_text("#gallery .said") == "nothing found"
    assert "No box has a score above 0.90. The best one is blue, 0.74." in page.inner_text("#objects-note")
    page.click("#objects-note button")
    assert shown(page)[0] == ("blue", 0.74)
    page.fill("#max_detections", "0")
    assert page.inner_text("#thresholds-error") == "", "while one types"
    page.keyboard.press("Tab")
    assert page.inner_text("#thresholds-error") == "Give a whole number from 1 to 1000."
    assert page.get_attribute("#max_detections", "aria-invalid") == "true"
    page.click("#thresholds-reset")
    assert len(shown(page)) == 4
    assert page.locator("#thresholds-reset").is_hidden()
    asked_anew = detect(page, lambda: set_slider(page, "iou_threshold", 0.3))
    assert len(asked_anew["detections"]) == 5


def test_models_of_both_tasks(server: Server, visit: Callable[..., Any], scene: Callable[..., Path]) -> None:
    page = visit(server)
    detect(page, lambda: choose(page, scene()))
    assert page.locator("#map td[tabindex]").count() == 6
    assert page.inner_text("#gallery .said") == "4 objects"
    page.select_option("#model", "classes")
    page.wait_for_selector("#classes li")
    for part in ("#objects-box", "#thresholds", "#boxes", "#box-detail", "#enlarge"):
        assert page.locator(part).is_hidden(), part
    assert page.inner_text("#answer-title").lower().startswith("class ")
    assert "softmax" in page.inner_text("footer")
    assert page.evaluate("document.getElementById('drop-cover').textContent.trim()") == "Drop to classify"
    detect(page, lambda: page.select_option("#model", "colours"))
    page.wait_for_selector("#boxes .box")
    assert page.locator("#classes-box").is_hidden()
    assert "softmax" not in page.inner_text("footer")


def test_refusals(server: Server, visit: Callable[..., Any], scene: Callable[..., Path], tmp_path: Path) -> None:
    page = visit(server)
    detect(page, lambda: choose(page, scene()))
    text = tmp_path / "notes.txt"
    text.write_text("No image.")
    choose(page, text)
    assert "Unsupported image format" in problem(page)
    for part in ("#objects-box", "#boxes", "#box-detail", "#thresholds"):
        assert page.locator(part).is_hidden(), part
    page.click("#gallery li:last-child .thumb")
    assert len(shown(page)) == 4
    refusal = {"slug": "inference_failed", "title": "Inference failed", "status": 500, "detail": "No."}
    page.route(
        "**/*score_threshold*",
        lambda route: route.fulfill(status=500, content_type="application/problem+json", body=json.dumps(refusal)),
    )
    set_slider(page, "iou_threshold", 0.4)
    assert "Inference failed" in problem(page)
    assert page.locator("#boxes .box").count() == 0, "no boxes that others would have taken the place of"
    page.unroute("**/*score_threshold*")
    detect(page, lambda: page.click("#problem button"))
    page.wait_for_selector("#boxes .box")


@pytest.mark.parametrize("view", ["dark", "phone"])
def test_many_boxes(
    server: Server, visit: Callable[..., Any], scene: Callable[..., Path], picture: Callable[..., None], view: str
) -> None:
    page = visit(server, **VIEWS[view])
    colours = (RED, GREEN, BLUE)
    many = {(row, column): colours[(row + column) % 3] for row in range(8) for column in range(8)}
    detect(page, lambda: choose(page, scene("many", (640, 480), many)))
    assert page.inner_text("#kinds").split() == ["green", "22", "red", "21", "blue", "21"]
    labels = page.evaluate(
        "[...document.querySelectorAll('.box-label:not(.crowded)')].map(label => {"
        " const { left, top, right, bottom } = label.getBoundingClientRect(); return [left, top, right, bottom]; })"
    )
    assert len(labels) >= 6
    for i, (left, top, right, bottom) in enumerate(labels):
        for other in labels[:i]:
            apart = right <= other[0] + 1 or other[2] <= left + 1 or bottom <= other[1] + 1 or other[3] <= top + 1
            assert apart, "labels don't cover each other"
    last = page.locator("#boxes [data-number='63']")
    last.hover()
    entry, around = (page.locator(part).bounding_box() for part in ("#objects li:last-child", "#objects"))
    assert around["y"] <= entry["y"] <= entry["y"] + entry["height"] <= around["y"] + around["height"] + 1
    picture(page, f"{view}-many")
    page.mouse.move(0, 0)
    assert not scrolls_sideways(page)
    assert_accessible(page)
    detect(page, lambda: choose(page, scene()))
    assert_accessible(page)
    picture(page, f"{view}-boxes")


def test_boxes_that_an_expert_takes_away(
    server: Server, visit: Callable[..., Any], scene: Callable[..., Path], picture: Callable[..., None]
) -> None:
    """Without expert 0 of one block, the fake detector's red boxes score half."""
    page, file = visit(server), scene()
    detect(page, lambda: choose(page, file))
    page.locator("#map td[tabindex]").first.click()
    page.wait_for_selector(".outcome")
    assert "2 of 4 boxes vanish." in page.inner_text(".outcome")
    assert page.locator(".small-stage .lost").count() == 2
    assert page.locator(".small-stage .kept").count() == 2
    assert page.evaluate("getComputedStyle(document.querySelector('.small-stage .lost')).borderTopStyle") == "dashed"
    assert [line[:8] for line in page.locator(".changed-boxes.lost li").all_inner_texts()] == ["red 0.70", "red 0.70"]
    assert "2 of 4 boxes vanish" in page.get_attribute(".small-stage", "aria-label")
    assert page.inner_text("#announcer") == "Without expert 0 of block 1: 2 of 4 boxes vanish."
    assert_accessible(page)
    picture(page, "boxes-lost")
    set_slider(page, "score_threshold", 0.2)
    assert page.locator(".outcome").count() == 0, "what was so for other boxes is gone"
    page.click("#expert-body button:text('Switch it off')")
    page.wait_for_selector(".outcome")
    assert "1 of 5 boxes vanishes." in page.inner_text(".outcome")
    page.select_option("#view", "effect")
    page.click("#ablate-all")
    page.wait_for_selector("#map-note:has-text('6 of 6 tried; 2 would take boxes away')")
    answer = server.client.post("/routing/ablation?uniform=false&score_threshold=0.2", content=file.read_bytes()).json()
    assert [float(text) for row in cells(page) for text in row] == pytest.approx(
        [1 - variant["similarity"] for variant in answer["variants"]], abs=0.0051
    )
