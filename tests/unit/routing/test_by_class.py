import re

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import RoutingLayout, RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.by_class import by_class
from condconv_serve.routing.plot_classes import depths_of, plot_by_class
from condconv_serve.routing.report import check_report_path, report, write_report
from tests.contract.fakes import even_layout

pytestmark = pytest.mark.slow

BLOCKS = tuple(f"block_{i}" for i in range(3))


def traces(classes=3, images=6, *, experts=4, apart=0.3, names=None, seed=0):
    """Classes that differ in their last block only."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(classes):
        for _ in range(images + number):
            weights = rng.uniform(0.3, 0.5, (len(BLOCKS), experts))
            weights[-1] += apart * (number % 2)
            name = names[number] if names else f"class {number}"
            found.append((name, RoutingTrace(even_layout(BLOCKS, experts), weights.astype(np.float32))))
    return found


def test_figures():
    given = traces()
    found = by_class(given)
    assert found.names == ("class 0", "class 1", "class 2")
    assert found.images.tolist() == [6, 7, 8]
    for number, name in enumerate(found.names):
        mine = np.stack([trace.weights for label, trace in given if label == name]).astype(np.float64)
        np.testing.assert_allclose(found.mean[number], mine.mean(axis=0))
        np.testing.assert_allclose(found.deviation[number], mine.std(axis=0))
    every = np.stack([trace.weights for _, trace in given]).astype(np.float64)
    np.testing.assert_allclose(found.between**2 + found.within**2, every.var(axis=0).mean(axis=1))
    assert found.explained[-1] > 0.7
    assert (found.explained[:-1] < 0.4).all()
    assert found.chosen(2) == [1, 2]
    document = found.to_json(model={"name": "m", "version": "1"})
    assert [c["images"] for c in document["classes"]] == [6, 7, 8]
    assert document["classes"][1]["routing"]["block_2"] == found.mean[1, 2].tolist()


def test_blocks_with_different_numbers_of_experts(tmp_path):
    """A block's figures are those that it has without the experts which only others have."""
    counts = (4,) * (len(BLOCKS) - 1) + (2,)
    given = traces()
    for _, trace in given:
        trace.weights[-1, 2:] = 0
    found = by_class([(label, RoutingTrace(RoutingLayout(BLOCKS, counts), trace.weights)) for label, trace in given])
    last = even_layout(BLOCKS[-1:], 2)
    alone = by_class([(label, RoutingTrace(last, trace.weights[-1:, :2])) for label, trace in given])
    np.testing.assert_allclose(found.between[-1], alone.between[0])
    np.testing.assert_allclose(found.within[-1], alone.within[0])
    np.testing.assert_allclose(found.overall.entropy_mean[-1], alone.overall.entropy_mean[0])
    document = found.to_json(model={})["classes"][0]
    for name in ("routing", "deviation"):
        assert [len(weights) for weights in document[name].values()] == list(counts)
    page = report(found, model="m")
    assert "expert 1</th>" in page
    assert "expert 2</th>" not in page
    plot_by_class(found, tmp_path / "plot.png")


def test_one_class_explains_nothing():
    found = by_class(traces(1))
    assert (found.explained == 0).all()


@pytest.mark.parametrize(
    ("blocks", "depths"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [0, 4, 7]), (40, [0, 20, 39])]
)
def test_depths(blocks, depths):
    assert depths_of(blocks) == depths


@pytest.mark.parametrize(("classes", "experts"), [(1, 1), (9, 17)])
def test_plot(tmp_path, classes, experts):
    plot_by_class(by_class(traces(classes, 2, experts=experts)), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 400
        assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_plot_shows_the_classes_and_escapes_their_names(tmp_path):
    names = ["a $x$ b", "<script>", "ünïcode"]
    plot_by_class(by_class(traces(names=names)), tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "ünïcode (8)" in text
    assert "<script" not in text


def test_report_needs_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    names = ["cats", "<b>dogs</b>", "it's"]
    write_report(by_class(traces(names=names)), path, model="m/1", failures=2)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "21 images of 3 classes" in page
    assert "2 more could not be used" in page
    assert "&lt;b&gt;dogs&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    for block in BLOCKS:
        assert f"<h3>{block}</h3>" in page
    # Names of XML namespaces are no addresses that a browser would ask for.
    for address in re.findall(r"""(\w[\w:]*)=["'](?:https?:)?//""", page):
        assert address.startswith("xmlns")
    references = re.findall(r"""(?:href|src)=["']([^"']+)|url\(([^)]+)\)""", page)
    assert all((a or b).startswith("#") for a, b in references)


def test_report_of_many_classes_stays_readable():
    trace = RoutingTrace(even_layout(BLOCKS[:1], 2), np.full((1, 2), 0.5, np.float32))
    page = report(by_class([(f"class {number}", trace) for number in range(1100)]), model="m/1")
    assert "The first 1000 of 1100 classes" in page
    assert "Shown are the 8 with the most images" in page


@pytest.mark.parametrize("name", ["report.txt", "report", "absent/report.html"])
def test_a_report_that_can_not_be_written(tmp_path, name):
    with pytest.raises(InvalidParameter):
        check_report_path(tmp_path / name)


def test_a_static_network():
    with pytest.raises(InvalidParameter, match="static"):
        by_class([("a", RoutingTrace(RoutingLayout(), np.zeros((0, 0), np.float32)))])
