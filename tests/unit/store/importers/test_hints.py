"""What is said of weights that are of another architecture than the one asked for."""

import re
from typing import Any

import numpy as np
import pytest

from condconv_serve.nn import get_architecture
from condconv_serve.store.importers import Translation
from condconv_serve.store.importers.hints import hint

pytestmark = pytest.mark.tensorflow

HINTS: dict[str, Any] = {
    "other experts": (
        ("efficientnet-condconv-b0-8e", {}),
        ("efficientnet-condconv-b0-4e", {}),
        "they look like --architecture efficientnet-condconv-b0-8e",
    ),
    "experts that no one has": (
        ("efficientnet-condconv-b0-4e", {"num_experts": 5}),
        ("efficientnet-condconv-b0-4e", {}),
        "they look like --architecture efficientnet-condconv-b0-4e --experts 5",
    ),
    "another width": (
        ("efficientnet-condconv-b0-4e", {"width_coefficient": 0.25}),
        ("efficientnet-condconv-b0-4e", {}),
        "they look like --architecture efficientnet-condconv-b0-4e --override width_coefficient=0.25",
    ),
    "another family": (
        ("efficientnet-condconv-b0-4e", {}),
        ("efficientnet-lite0-condconv-4e", {}),
        "they look like --architecture efficientnet-condconv-b0-4e",
    ),
    "static": (
        ("efficientnet-b0", {}),
        ("efficientnet-condconv-b0-8e", {}),
        "they are those of its static twin efficientnet-b0: --upcycle makes experts of them",
    ),
    "static, in the width that was asked for": (
        ("efficientnet-b0", {"width_coefficient": 0.25}),
        ("efficientnet-condconv-b0-8e", {"width_coefficient": 0.25}),
        "they are those of its static twin efficientnet-b0: --upcycle makes experts of them",
    ),
    "static, in another width": (
        ("efficientnet-b0", {"width_coefficient": 0.25}),
        ("efficientnet-condconv-b0-8e", {}),
        "they are those of its static twin efficientnet-b0 in another size: "
        "--override width_coefficient=0.25 --upcycle makes experts of them",
    ),
    "static, and registered in another size": (
        ("efficientnet-b3", {}),
        ("efficientnet-condconv-b0-8e", {}),
        "they look like --architecture efficientnet-b3",
    ),
    "conditional": (
        ("efficientnet-condconv-b0-8e", {}),
        ("efficientnet-b0", {}),
        "they look like --architecture efficientnet-condconv-b0-8e",
    ),
    "experts in other blocks": (
        ("efficientnet-condconv-b0-4e", {"condconv": "block_13,block_15"}),
        ("efficientnet-condconv-b0-4e", {}),
        "they look like --architecture efficientnet-condconv-b0-4e --override condconv=block_13,block_15",
    ),
    "experts in a network that is registered without": (
        ("efficientnet-b3", {"num_experts": 4, "condconv": "block_25,head,classifier"}),
        ("efficientnet-condconv-b0-4e", {}),
        "they look like --architecture efficientnet-b3 --experts 4 --override condconv=block_25,head,classifier",
    ),
    "deeper": (
        ("efficientnet-condconv-b0-8e-depth", {}),
        ("efficientnet-condconv-b0-8e", {}),
        "they look like --architecture efficientnet-condconv-b0-8e-depth",
    ),
}


UPCYCLED: dict[str, Any] = {
    "of another family": (
        "efficientnet-lite0",
        "efficientnet-b0",
        "they look like --architecture efficientnet-lite0",
    ),
    "experts already": (
        "efficientnet-condconv-b0-8e",
        "efficientnet-b0",
        "they have experts already: import them without --upcycle, with --architecture efficientnet-condconv-b0-8e",
    ),
}


def weights_of(given):
    """What an importer finds of an architecture, as far as it tells architectures apart."""
    shapes = {"stem/kernel": (3, 3, 3, given.stem_filters)}
    for block in given.blocks():
        shapes[f"{block.name}_project_norm/gamma"] = (block.out_filters,)
        if block.se_filters:
            shapes[f"{block.name}_se_reduce/bias"] = (block.se_filters,)
    shapes |= {f"{part}_routing/bias": (given.num_experts,) for part in given.condconv}
    translation = Translation()
    for path, shape in shapes.items():
        translation.add(path, path, np.zeros(shape, np.float32))
    return translation


@pytest.mark.parametrize(("given", "asked", "says"), HINTS.values(), ids=HINTS)
def test_the_right_architecture_is_guessed(given, asked, says):
    found = hint({}, weights_of(get_architecture(given[0], **given[1])), get_architecture(asked[0], **asked[1]))
    assert found == f" By their shapes {says}."


@pytest.mark.parametrize(("given", "asked", "says"), UPCYCLED.values(), ids=UPCYCLED)
def test_the_right_static_network_is_guessed(given, asked, says):
    found = hint({}, weights_of(get_architecture(given)), get_architecture(asked), upcycling=True)
    assert found == f" By their shapes {says}."


@pytest.mark.parametrize(("width", "depth"), [(1.0, 1.4), (1.2, 1.4), (0.25, 0.5), (1.0, 2.2)])
def test_other_depths(width, depth):
    given = get_architecture("efficientnet-lite0-condconv-4e", width_coefficient=width, depth_coefficient=depth)
    found = hint({}, weights_of(given), get_architecture("efficientnet-lite0-condconv-4e"))
    options = {name: float(value) for name, value in re.findall(r"--override (\w+)=(\d+(?:\.\d+)?)", found)}
    again = get_architecture("efficientnet-lite0-condconv-4e", **options)
    assert again.blocks() == given.blocks()
    assert ("width_coefficient" in options) == (width != 1), "nothing is named that is as usual"
