"""Your own network, whose blocks have different numbers of experts, the first one the fewest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from condconv_serve.domain import Preprocessing
from tests.browser.steps import cells, names, sample
from tests.e2e.server import Server

pytestmark = pytest.mark.browser

EXPERTS = {"first": 2, "second": 5, "third": 3}
PREPROCESSING = Preprocessing(transform="pillow", image_size=32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, randomise: Callable[..., Any]) -> Iterator[Server]:
    import keras
    from keras import layers

    from condconv_serve.nn import CondConv2D
    from condconv_serve.training import save_bundle

    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(pixels)
    for name, experts in EXPERTS.items():
        routing = layers.Dense(experts, activation="sigmoid", name=name)(layers.GlobalAveragePooling2D()(x))
        x = CondConv2D(8, 3, num_experts=experts, activation="relu")(x, routing)
    model = randomise(keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    store = tmp_path_factory.mktemp("store")
    save_bundle(model, store, name="own", labels=["a", "b", "c"], preprocessing=PREPROCESSING)
    with Server(real=True, model_store=store) as running:
        yield running


def test_each_block_has_its_own_experts(
    server: Server, visit: Callable[..., Any], picture: Callable[..., None]
) -> None:
    page = visit(server)
    routing = sample(page, "coffee")["predictions"][0]["routing"]
    assert {block: len(weights) for block, weights in routing.items()} == EXPERTS
    assert cells(page) == [[f"{weight:.2f}" for weight in weights] for weights in routing.values()]
    assert page.inner_text("#routing-summary").startswith("Each of 3 blocks holds 2 to 5 experts: sets of filters")

    page.focus("#map tbody tr:nth-child(2) td:nth-child(2)")
    for key, place in (("End", "second, expert 4"), ("ArrowUp", "first, expert 1"), ("Control+End", "third, expert 2")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(f"{place}:")
    page.keyboard.press("Enter")
    page.wait_for_selector("#expert-body >> text=as it is")

    page.select_option("#view", "effect")
    page.click("#ablate-all")
    page.wait_for_selector("#map-note:has-text('10 of 10 tried')")
    assert [len(row) for row in names(page)] == list(EXPERTS.values())
    assert "\N{EN DASH}" not in {text for row in cells(page) for text in row}
    page.wait_for_selector("#live-map td")
    assert [len(row) for row in cells(page, "#live-map")] == list(EXPERTS.values())
    page.select_option("#view", "live")
    assert [len(row) for row in cells(page)] == list(EXPERTS.values())
    picture(page, "own-network")
