import io

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import RoutingLayout, RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.plot import check_plot_path, draw_routing, plot_routing
from tests.contract.fakes import even_layout

pytestmark = pytest.mark.slow

BLOCKS = ("block_8", "block_9", "block_10")


def trace(weight=None, *, experts=4, seed=0):
    weights = np.random.default_rng(seed).random((len(BLOCKS), experts)).astype(np.float32)
    return RoutingTrace(even_layout(BLOCKS, experts), weights if weight is None else np.full_like(weights, weight))


def pixels_of(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_the_weights_are_seen(tmp_path):
    for weight, colour in ((0.0, (68, 1, 84)), (1.0, (253, 231, 36))):  # the ends of viridis
        plot_routing([("flat", trace(weight))], tmp_path / "flat.png")
        difference = np.abs(pixels_of(tmp_path / "flat.png").astype(int) - colour)
        assert (difference.max(axis=-1) <= 1).mean() > 0.2
    plot_routing([("random", trace())], tmp_path / "random.png")
    assert len(np.unique(pixels_of(tmp_path / "random.png").reshape(-1, 3), axis=0)) > 50


def test_four_maps_in_a_row(tmp_path):
    def height(images):
        plot_routing([(f"image {i}", trace(seed=i, experts=2)) for i in range(images)], tmp_path / "plot.png")
        return len(pixels_of(tmp_path / "plot.png"))

    row = height(1)
    assert [height(images) for images in (4, 5, 9)] == [row, 2 * row, 3 * row]


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
    with pytest.raises(InvalidParameter):
        plot_routing([("image", trace())], tmp_path / name)
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
    data = draw_routing([("image", RoutingTrace(even_layout(blocks, 64), weights))] * 4, "png")
    with Image.open(io.BytesIO(data)) as image:
        assert max(image.size) <= 4000


def test_long_and_unprintable_titles():
    text = draw_routing([("a" * 300 + "\x00\x1b", trace())], "svg").decode()
    assert f"<!-- {'a' * 39}… -->" in text
