"""Ten thousand classes, 64 experts, 40 blocks: a real network of that shape, with few channels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from condconv_serve.domain import Label
from condconv_serve.domain.manifest import PreprocessingSpec, Provenance
from condconv_serve.store import NewBundle, write_bundle
from tests.browser.conftest import PHONE
from tests.browser.steps import names, sample, scrolls_sideways
from tests.e2e.server import Server

pytestmark = pytest.mark.browser

CLASSES, EXPERTS, BLOCKS = 10_000, 64, 40
# Eight CondConv blocks, five times as deep.
ARCHITECTURE: dict[str, Any] = {
    "num_classes": CLASSES,
    "num_experts": EXPERTS,
    "width_coefficient": 0.1,
    "depth_coefficient": 5.0,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, randomise: Callable[..., Any]) -> Iterator[Server]:
    from condconv_serve.nn import build_network, get_architecture

    name = "efficientnet-lite0-condconv-4e"
    network = randomise(build_network(get_architecture(name, **ARCHITECTURE), input_size=32))
    store = tmp_path_factory.mktemp("store")
    write_bundle(
        store,
        NewBundle(
            name="large",
            version="1",
            architecture={"name": name, **ARCHITECTURE},
            preprocessing=PreprocessingSpec(
                transform="pillow", image_size=32, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
            ),
            weights={variable.path: np.asarray(variable) for variable in network.weights},
            labels=[
                Label(i, f"class {i} with a rather long name: Donaudampfschifffahrtsgesellschaftskapitänsmütze")
                for i in range(CLASSES)
            ],
            provenance=Provenance(source="tests", method="random"),
            licence="Apache-2.0",
            model_card="# Large\n",
        ),
    )
    with Server(real=True, model_store=store) as running:
        yield running


@pytest.mark.parametrize("view", ["desktop", "phone"])
def test_usable(server: Server, visit: Callable[..., Any], picture: Callable[..., None], view: str) -> None:
    page = visit(server, **({"viewport": PHONE} if view == "phone" else {}))
    body = sample(page, "coffee")
    weights = body["predictions"][0]["routing"]
    assert len(weights) == BLOCKS
    described = names(page)
    assert [len(row) for row in described] == [EXPERTS] * BLOCKS
    for (block, row), shown in zip(weights.items(), described, strict=True):
        for expert, (weight, name) in enumerate(zip(row, shown, strict=True)):
            assert name.startswith(f"{block.replace('_', ' ')}, expert {expert}: weight {weight:.4f}")
    assert page.locator("#classes li").count() == 5
    assert page.evaluate("document.querySelectorAll('*').length") < 4 * BLOCKS * EXPERTS
    assert not scrolls_sideways(page)
    page.wait_for_selector("#live-map td")
    # What changes the whole grid takes less than the blink of an eye; 100 ms is what feels immediate.
    took = page.evaluate(
        """() => {
            const view = document.getElementById("view");
            const times = ["effect", "weights", "effect", "weights"].map((value) => {
                const started = performance.now();
                view.value = value;
                view.dispatchEvent(new Event("change"));
                document.body.getBoundingClientRect();
                return performance.now() - started;
            });
            return times.sort((a, b) => a - b)[1];
        }"""
    )
    print(f"recolouring {BLOCKS} x {EXPERTS} cells: {took:.0f} ms")
    assert took < 400
    page.locator("#map td[tabindex]").first.focus()
    seconds = list[float]()
    for _ in range(20):
        started = time.monotonic()
        page.keyboard.press("ArrowRight")
        seconds.append(time.monotonic() - started)
    assert page.evaluate("document.activeElement.place.join()") == "0,20"
    assert statistics.median(seconds) < 0.2
    picture(page, f"large-{view}")


def test_ablation(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server)
    page.context.set_default_timeout(120_000)
    sample(page, "coffee")
    page.locator("#map td[tabindex]").nth(70).click()
    page.wait_for_selector(".outcome")
    assert page.inner_text("#expert-title").lower().endswith("expert 6")
