"""Images in, and what is shown of them: classes, experts, comparisons, ablations."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condconv_serve.samples import SAMPLES
from tests import pictures
from tests.browser.steps import answer_to, cells, choose, names, numbers, sample
from tests.e2e.server import Server

pytestmark = pytest.mark.browser

COFFEE = next(path for path in SAMPLES if path.name == "coffee.jpg")
ROUNDED = 0.0051  # two digits are shown


def assert_shown(page: Any, body: dict[str, Any]) -> None:
    """Check that the heat map and the classes are those of an answer."""
    (prediction,) = body["predictions"]
    weights = list(prediction["routing"].values())
    assert cells(page) == [[f"{weight:.2f}" for weight in block] for block in weights]
    for block, row, described in zip(prediction["routing"], weights, names(page), strict=True):
        for expert, (weight, name) in enumerate(zip(row, described, strict=True)):
            assert name.startswith(f"{block.replace('_', ' ')}, expert {expert}: weight {weight:.4f}")
    labels = page.locator("#classes .label").all_inner_texts()
    assert labels == [one["label"] for one in prediction["classes"][:5]]
    shares = page.locator("#classes .value").all_inner_texts()
    for one, text in zip(prediction["classes"], shares, strict=False):
        assert text == "< 0.1 %" or abs(float(text.split()[0]) / 100 - one["probability"]) < 0.00051


def test_chosen_file(server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]) -> None:
    page = visit(server)
    body = answer_to(page, lambda: choose(page, photograph()))
    assert_shown(page, body)
    (prediction,) = body["predictions"]
    timings = page.inner_text("#timings")
    for stage in ("decode", "queue", "inference", "total"):
        assert stage in timings
    assert f"Rode in a batch of {prediction['batch_size']} image" in timings
    assert f"{body['model']['name']}, version {body['model']['version']}" in timings
    assert page.inner_text("#photo-name").startswith("coffee.jpg, ")
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 300
    assert "espresso" in page.inner_text("#announcer")


def test_heat_map_is_what_the_service_answers_to_others(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    weights = server.client.post("/routing", content=COFFEE.read_bytes()).json()["predictions"][0]["routing"]
    for shown, expected in zip(numbers(cells(page)), weights.values(), strict=True):
        assert shown == pytest.approx(expected, abs=ROUNDED)


FIRST_SCREENS = {"desktop": (1280, 800), "laptop": (1366, 768)}


@pytest.mark.parametrize("screen", FIRST_SCREENS)
def test_answer_and_experts_are_on_the_first_screen(server: Server, visit: Callable[..., Any], screen: str) -> None:
    width, height = FIRST_SCREENS[screen]
    page = visit(server, viewport={"width": width, "height": height})
    large = page.locator("#drop").bounding_box()["height"]
    sample(page, "coffee")
    assert page.locator("#drop").bounding_box()["height"] < large / 3
    assert page.evaluate("scrollY") == 0
    for part in ("#answer-title", "#classes li:nth-child(5)", "#routing-title", "#map tbody tr:last-child"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= height, part
    page.locator("#map td[tabindex]").first.click()
    page.wait_for_selector(".outcome")
    assert page.evaluate("scrollY") == 0, "what is seen already doesn't move"
    page.click("#clear")
    assert page.locator("#drop").bounding_box()["height"] == large


@pytest.mark.parametrize("screen", [(390, 844), (360, 640)])
def test_panel_of_a_tapped_expert_comes_into_view(
    server: Server, visit: Callable[..., Any], screen: tuple[int, int]
) -> None:
    viewport = {"width": screen[0], "height": screen[1]}
    page = visit(server, viewport=viewport, has_touch=True, is_mobile=True, reduced_motion="reduce")
    sample(page, "coffee")
    top = page.locator("#classes li").first.bounding_box()
    assert top["y"] < screen[1], "the answer is on the first screen"
    page.locator("#map td[tabindex]").first.tap()
    assert page.evaluate("document.activeElement.id") == "expert"
    page.wait_for_selector(".outcome")
    page.wait_for_function(
        "() => { const box = document.querySelector('.outcome').getBoundingClientRect();"
        " return box.top >= 0 && box.bottom <= innerHeight; }"
    )


def test_words_for_strangers(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    insight = sample(page, "coffee")["predictions"][0]["insight"]
    words = page.inner_text("#routing-summary")
    assert "Each of 8 blocks holds 4 experts: sets of filters, which it mixes anew for every image." in words
    times = insight["reference_distance"] / insight["typical_distance"]
    usual = f"Mixed within the usual range of the 250 reference photos: {times:.1f} times their typical distance."
    assert usual in words, "the sample isn't unusual"
    note = page.inner_text("#map-note")
    assert "Each weight goes from 0 to 1 on its own" in note
    assert "experts come in pairs, 0 with 1, 2 with 3: the weights of a pair sum to 1" in note

    def unlike(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        (prediction,) = body["predictions"]
        far = 2.04 * prediction["insight"]["typical_distance"]
        prediction["insight"] |= {"reference_distance": far, "unusual": True}
        prediction["routing"]["block_8"] = [0.1, 0.2, 0.3, 0.4]
        route.fulfill(response=answer, json=body)

    page.route("**/routing?*top_k*", unlike)
    page.click("#clear")
    sample(page, "rocket")
    words = page.inner_text("#routing-summary")
    assert "Mixed unlike most of the 250 reference photos: 2.0 times their typical distance." in words
    assert page.inner_text("#map-note").endswith("A block's weights needn't sum to 1."), "no pairs, so none are told of"


def test_words_are_explained(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    page.wait_for_selector("#drift td")
    tooltip = page.locator("#tooltip")
    for name, says in (
        ("typical distance", "Half of them are nearer"),
        ("entropy", "0 if one expert has all the weight"),
        ("PSI", "0 is no difference"),
        ("JS", "1 if they have nothing in common"),
    ):
        word = page.locator(".term", has_text=name).first
        word.hover()
        assert says in tooltip.inner_text()
        page.mouse.move(0, 0)
        assert tooltip.is_hidden()
        word.focus()
        assert says in tooltip.inner_text()
        page.keyboard.press("Escape")
        assert tooltip.is_hidden()
    word = page.locator("#drift .term", has_text="PSI")
    word.focus()
    with page.expect_response(lambda response: "/routing?" in response.url and response.request.method == "GET"):
        page.evaluate("document.querySelector('#drift tbody tr').id = 'old'")
        page.evaluate("document.getElementById('window').dispatchEvent(new Event('change'))")
    page.wait_for_selector("#old", state="detached")
    assert page.evaluate("document.activeElement.textContent") == "PSI", "new figures leave the focus where it is"


def test_more_classes(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    shown = page.locator("#classes li")
    for many in (20, 50, 5):
        page.click("#more-classes")
        assert shown.count() == many


@pytest.mark.parametrize("count", [1, 3])
def test_dropped_files(server: Server, visit: Callable[..., Any], count: int) -> None:
    page = visit(server)
    content = base64.b64encode(COFFEE.read_bytes()).decode()

    def drop() -> None:
        page.evaluate(
            """([content, count]) => {
                const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
                const dataTransfer = new DataTransfer();
                for (let i = 0; i < count; i += 1) dataTransfer.items.add(new File([bytes], `dropped ${i}.jpg`));
                const target = document.getElementById("live");
                for (const kind of ["dragenter", "dragover"])
                    target.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
                window.coverShown = !document.getElementById("drop-cover").hidden;
                target.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
            }""",
            [content, count],
        )

    body = answer_to(page, drop)
    assert_shown(page, body)
    assert page.evaluate("window.coverShown")
    assert page.locator("#drop-cover").is_hidden()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#gallery .said')].every((e) => e.textContent.includes('espresso'))"
    )
    assert page.locator("#gallery li").count() == count
    assert page.locator("#gallery .name").first.inner_text() == "dropped 0.jpg"


def test_pasted_image(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server, permissions=["clipboard-read", "clipboard-write"])
    png = base64.b64encode(pictures.encode(pictures.photo("coffee", (120, 80)), "PNG")).decode()
    page.evaluate(
        """async (content) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ [blob.type]: blob })]);
        }""",
        png,
    )
    body = answer_to(page, lambda: page.keyboard.press("Control+v"))
    assert_shown(page, body)


@pytest.mark.parametrize("name", sorted(path.stem for path in SAMPLES))
def test_samples(server: Server, visit: Callable[..., Any], name: str) -> None:
    page = visit(server)
    assert_shown(page, sample(page, name))


def test_format_that_browsers_cannot_show(server: Server, visit: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "scan.tiff"
    file.write_bytes(pictures.encode(pictures.photo("coffee", (120, 80)), "TIFF"))
    page = visit(server)
    assert_shown(page, answer_to(page, lambda: choose(page, file)))
    page.wait_for_selector("#photo-none:not([hidden])")
    assert page.locator("#gallery .no-picture").inner_text().lower() == "tiff"


def test_several_images_are_compared_and_removed(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(server)
    first = answer_to(page, lambda: choose(page, photograph("coffee")))["predictions"][0]["routing"]
    second = answer_to(page, lambda: choose(page, photograph("cat")))["predictions"][0]["routing"]
    page.select_option("#view", label="difference from coffee.jpg")
    expected = [[a - b for a, b in zip(second[block], first[block], strict=True)] for block in first]
    assert numbers(cells(page)) == [pytest.approx(row, abs=ROUNDED) for row in expected]
    total = math.sqrt(sum(value**2 for row in expected for value in row) / sum(map(len, expected)))
    assert f"Root mean square {total:.3f}" in page.inner_text("#map-note")
    page.click("#gallery li:first-child .thumb")
    page.select_option("#view", label="difference from cat.jpg")
    assert numbers(cells(page)) == [pytest.approx([-value for value in row], abs=ROUNDED) for row in expected]
    third = answer_to(page, lambda: choose(page, photograph("rocket")))["predictions"][0]["routing"]
    page.select_option("#view", label="difference from cat.jpg")
    expected = [[a - b for a, b in zip(third[block], second[block], strict=True)] for block in first]
    assert numbers(cells(page)) == [pytest.approx(row, abs=ROUNDED) for row in expected], (
        "of three, the one that is named"
    )
    page.click("[aria-label='Remove rocket.jpg']")
    page.click("[aria-label='Remove cat.jpg']")
    assert page.locator("#gallery li").count() == 1
    assert "cat.jpg" not in page.inner_text("#view")
    page.click("#clear")
    for part in ("#gallery-section", "#answer", "#routing"):
        assert page.locator(part).is_hidden()


def test_images_that_come_together_ride_together(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path]
) -> None:
    page = visit(server)
    files = [photograph(name) for name in ("coffee", "cat", "rocket", "astronaut")]
    choose(page, *files * 3)
    page.wait_for_function("() => document.querySelectorAll('#gallery li[data-state=done]').length === 12")
    assert page.locator("#gallery .name").all_inner_texts() == [file.name for file in files * 3]


@pytest.mark.parametrize("kind", ["live", "reference"])
def test_compared_with_the_average(server: Server, visit: Callable[..., Any], kind: str) -> None:
    page = visit(server)
    body = sample(page, "coffee")
    page.select_option("#window", "all")
    answer = server.client.get("/routing?window=all").json()
    page.wait_for_function(
        "images => document.getElementById('live-summary').textContent.includes(`: ${images} image`)"
        " && document.getElementById('live-summary').textContent.includes('all time')",
        arg=answer["images"],
    )
    page.wait_for_selector("#view option[value=live]", state="attached")
    page.select_option("#view", kind)
    if kind == "live":
        means = [[expert["mean"] for expert in block["experts"]] for block in answer["blocks"]]
    else:
        means = [block["mean"] for block in answer["reference"]["blocks"]]
    weights = body["predictions"][0]["routing"].values()
    expected = [[a - b for a, b in zip(row, mean, strict=True)] for row, mean in zip(weights, means, strict=True)]
    assert numbers(cells(page)) == [pytest.approx(row, abs=ROUNDED) for row in expected]


def test_tooltip(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    cell = page.locator("#map td[tabindex]").nth(5)
    cell.hover()
    tooltip = page.locator("#tooltip")
    assert tooltip.inner_text() == cell.get_attribute("aria-label")
    page.locator("#photo-name").hover()
    assert tooltip.is_hidden()


def test_expert_switched_off(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    with page.expect_response("**/routing/ablation?*") as sent:
        page.locator("#map td[tabindex]").nth(6).click()
    answer = sent.value.json()
    (variant,) = answer["variants"]
    assert variant["changes"] == [{"block": "block_9", "off": [2]}]
    page.wait_for_selector(".outcome")
    assert page.inner_text("#expert-title").lower() == "block 9, expert 2"
    words = page.inner_text(".outcome")
    assert f"{variant['probability'] * 100:.1f} %" in words
    assert f"{answer['top']['probability'] * 100:.1f} %" in words
    assert f"{abs(variant['difference']) * 100:.1f} points" in words
    assert ("The answer changes" in words) == (not variant["same_top"])
    said = page.inner_text("#announcer")
    assert said.startswith("Without expert 2 of block 9: espresso")
    page.click("#expert-body button")
    page.wait_for_function("() => document.querySelectorAll('.outcome').length === 2")
    assert "Classes that use it most" in page.inner_text("#expert-body")


def test_every_expert_switched_off(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")

    def places() -> list[list[float]]:
        boxes = [cell.bounding_box() for cell in page.locator("#map tbody tr:first-child td[tabindex]").all()]
        return [[box["x"], box["width"]] for box in boxes]

    before = places()
    page.select_option("#view", "effect")
    assert {text for row in cells(page) for text in row} == {"\N{EN DASH}"}
    page.click("#ablate-all")
    page.wait_for_selector("#ablate-all", state="hidden")
    answer = server.client.post("/routing/ablation?uniform=false", content=COFFEE.read_bytes()).json()
    expected = {variant["name"]: variant["difference"] * 100 for variant in answer["variants"]}
    shown = [value for row in numbers(cells(page)) for value in row]
    assert shown == pytest.approx(list(expected.values()), abs=0.11)
    assert "32 of 32 tried" in page.inner_text("#map-note")
    assert places() == before, "columns stay where they are"


def test_ablation_that_has_to_wait(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    sample(page, "coffee")
    refused: list[Any] = []

    def busy(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(True)
        route.fulfill(
            status=429,
            headers={"Retry-After": "1", "Content-Type": "application/problem+json"},
            body=json.dumps(
                {
                    "slug": "ablation_busy",
                    "title": "Ablation busy",
                    "status": 429,
                    "detail": "Busy.",
                    "retry_after": 1.0,
                }
            ),
        )

    page.route("**/routing/ablation?*", busy)
    page.locator("#map td[tabindex]").first.click()
    page.wait_for_function(
        "() => document.getElementById('announcer').textContent.includes('Ablation busy. Trying again in 1 second')"
    )
    page.wait_for_selector(".outcome")


def test_labels_are_never_markup(
    server: Server, visit: Callable[..., Any], photograph: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    file.write_bytes(photograph().read_bytes())
    page = visit(server)
    answer_to(page, lambda: choose(page, file))
    assert page.locator("#gallery .name").inner_text() == file.name
    assert re.search(r"<img", page.inner_text("#photo-name"))


def test_ablation_without_a_server(server: Server, visit: Callable[..., Any]) -> None:
    """Nobody tries again by itself, so the page doesn't say so."""
    page = visit(server)
    sample(page, "coffee")
    page.route("**/routing/ablation?*", lambda route: route.abort())
    page.click("#map td[tabindex]")
    page.wait_for_selector("#expert-body .problem")
    assert "by itself" not in page.inner_text("#expert-body")
    page.unroute("**/routing/ablation?*")
    page.click("#expert-body button:has-text('Try again')")
    page.wait_for_selector("#expert-body >> text=as it is")
