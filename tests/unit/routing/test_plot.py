import io
import re

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import RoutingLayout, RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.palette import DARK, LIGHT
from condconv_serve.routing.picture import Look, check_plot_path, look_of
from condconv_serve.routing.plot import draw_routing
from condconv_serve.routing.plot import plot_routing as plot
from condconv_serve.routing.provenance import Provenance
from tests.contract.fakes import even_layout

pytestmark = pytest.mark.slow

BLOCKS = ("block_8", "block_9", "block_10")


MADE_BY = Provenance(
    model="m",
    version="3",
    weights_sha256="0123456789abcdef" * 4,
    made="2026-01-02T03:04:05Z",
    software="condconv-serve 1",
    command="condconv routing 'a $b$.jpg'",
)


def plot_routing(traces, path, **look):
    plot(traces, path, look_of(path, **look))


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def trace(weight=None, *, experts=4, seed=0):
    weights = np.random.default_rng(seed).random((len(BLOCKS), experts)).astype(np.float32)
    return RoutingTrace(even_layout(BLOCKS, experts), weights if weight is None else np.full_like(weights, weight))


def pixels_of(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("name", "theme"), [("auto", LIGHT), ("light", LIGHT), ("dark", DARK)])
def test_the_weights_are_seen(tmp_path, name, theme):
    for weight, colour in ((0.0, theme.sequential[0]), (1.0, theme.sequential[-1])):
        plot_routing([("flat", trace(weight))], tmp_path / "flat.png", theme=name)
        pixels = pixels_of(tmp_path / "flat.png").astype(int)
        assert (np.abs(pixels - rgb(colour)).max(axis=-1) <= 1).mean() > 0.2
        assert pixels[0, 0].tolist() == list(rgb(theme.surface))
    plot_routing([("random", trace())], tmp_path / "random.png")
    assert len(np.unique(pixels_of(tmp_path / "random.png").reshape(-1, 3), axis=0)) > 50


def test_four_maps_in_a_row(tmp_path):
    def height(images):
        plot_routing([(f"image {i}", trace(seed=i, experts=2)) for i in range(images)], tmp_path / "plot.png")
        return len(pixels_of(tmp_path / "plot.png"))

    row = height(1)
    heights = [height(images) for images in (4, 5)]
    assert heights[0] == row
    assert 1.5 * row < heights[1] < 2 * row


def test_narrow_pictures_have_one_map_in_a_row(tmp_path):
    three = [(f"image {i}", trace(seed=i)) for i in range(3)]
    plot_routing(three, tmp_path / "wide.png")
    plot_routing(three, tmp_path / "narrow.png", narrow=True)
    wide, narrow = (pixels_of(tmp_path / name).shape for name in ("wide.png", "narrow.png"))
    assert narrow[1] <= 500 < wide[1]
    assert narrow[0] > 2 * wide[0]


def test_an_svg_turns_dark_where_its_viewer_is_dark():
    traces = [("image", trace())]
    text = draw_routing(traces, Look(kind="svg")).decode()
    style = text[text.index("<style") : text.index("</style>")]
    assert style.count("@media") == text.count("prefers-color-scheme: dark") == 1
    assert f'[style*="fill: {LIGHT.surface}"]{{fill:{DARK.surface}!important}}' in style
    # Whatever has a colour, has one for the dark.
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text[text.index("</style>") :]))
    assert drawn <= set(re.findall(r": (#[0-9a-f]{6})", style))
    assert "<image" not in text
    for theme, surface in (("light", LIGHT.surface), ("dark", DARK.surface)):
        fixed = draw_routing(traces, Look(kind="svg", theme=theme)).decode()
        assert "prefers-color-scheme" not in fixed
        assert f"fill: {surface}" in fixed


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_says_what_made_it(tmp_path, kind):
    data = draw_routing([("image", trace())], Look(kind=kind, made_by=MADE_BY))
    if kind == "png":
        with Image.open(io.BytesIO(data)) as image:
            said = image.info["Description"]
            assert image.info["Software"] == "condconv-serve 1"
    else:
        said = data.decode("latin-1")
    for part in ("m/3", MADE_BY.made, MADE_BY.weights_sha256):
        assert part in said
    if kind == "svg":  # on the picture itself, too
        written = " ".join(" ".join(re.findall(r"<!-- (.*?) -->", said, re.DOTALL)).split())
        assert "m/3, weights 0123456789ab, 2026-01-02, condconv-serve 1: condconv routing 'a $b$.jpg'" in written


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("A.PNG", b"\x89PNG")])
def test_kinds_of_files(name, start, tmp_path):
    plot_routing([("image", trace())], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_titles_and_blocks_are_written(tmp_path):
    plot_routing([(r"espresso [$5], $\frac$ & more", trace())], tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for name in (*BLOCKS, "routing weight", r"espresso [$5], $\frac$ &amp; more"):
        assert f"<!-- {name} -->" in text


@pytest.mark.parametrize("name", ["plot.txt", "plot", "plot.png.exe", ".png"])
def test_other_kinds_are_refused(name, tmp_path):
    with pytest.raises(InvalidParameter, match=r"a plot is written as \.png, \.svg, \.pdf\.$"):
        check_plot_path(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(InvalidParameter, match="there is no directory"):
        check_plot_path(tmp_path / "absent" / "plot.png")


def test_a_static_network_has_nothing_to_plot(tmp_path):
    with pytest.raises(InvalidParameter, match="static network"):
        plot_routing([("image", RoutingTrace(RoutingLayout(), np.zeros((0, 0), np.float32)))], tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_very_many_experts_and_blocks_stay_a_picture_of_bounded_size():
    blocks = tuple(f"block_{i}" for i in range(40))
    weights = np.random.default_rng(0).random((40, 64)).astype(np.float32)
    data = draw_routing([("image", RoutingTrace(even_layout(blocks, 64), weights))] * 4, Look(kind="png"))
    with Image.open(io.BytesIO(data)) as image:
        assert max(image.size) <= 4000


def test_long_and_unprintable_titles():
    text = draw_routing([("a" * 300 + "\x00\x1b", trace())], Look(kind="svg")).decode()
    assert f"<!-- {'a' * 39}… -->" in text
