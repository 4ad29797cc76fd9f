import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import RoutingLayout, RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing import plot_classes
from condconv_serve.routing import report as report_module
from condconv_serve.routing.by_class import by_class
from condconv_serve.routing.class_export import CLASS_COLUMNS, check_data_path, classes_csv, classes_npz, with_origin
from condconv_serve.routing.effect_size import effect_size
from condconv_serve.routing.picture import look_of
from condconv_serve.routing.plot_classes import MAX_CLASSES, depths_of
from condconv_serve.routing.plot_classes import plot_by_class as plot
from condconv_serve.routing.report import check_report_path, percent, probability, report, write_report
from tests.contract.fakes import even_layout
from tests.unit.routing.test_plot import MADE_BY

pytestmark = pytest.mark.slow

BLOCKS = tuple(f"block_{i}" for i in range(3))


def plot_by_class(found, path, **look):
    plot(found, path, look_of(path, **look))


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
        np.testing.assert_allclose(found.deviation[number], mine.std(axis=0, ddof=1))
    assert found.effect.low[-1] > 0.7
    assert (found.effect.share[:-1] < 0.3).all()
    assert (found.effect.p[:-1] > 0.01).all()
    assert found.chosen(2) == [1, 2]
    document = found.to_json(MADE_BY)
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
    for name in ("share", "low", "high", "between", "within"):
        np.testing.assert_allclose(getattr(found.effect, name)[-1], getattr(alone.effect, name)[0], atol=0.02)
    np.testing.assert_allclose(found.overall.entropy_mean[-1], alone.overall.entropy_mean[0])
    document = found.to_json(MADE_BY)["classes"][0]
    for name in ("routing", "deviation"):
        assert [len(weights) for weights in document[name].values()] == list(counts)
    page = report(found, MADE_BY)
    assert "expert 1</th>" in page
    assert "expert 2</th>" not in page
    plot_by_class(found, tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("classes", "images", "says"),
    [(1, 6, "one class only"), (5, 1, "one image only")],
)
def test_where_nothing_can_be_known_it_says_so(classes, images, says):
    given = [(f"class {i}", t) for i in range(classes) for t in [trace for _, trace in traces(1, images, seed=i)]]
    found = by_class(given)
    assert any(says in remark for remark in found.remarks())
    document = json.dumps(found.to_json(MADE_BY), allow_nan=False)
    assert json.loads(document)["blocks"][0]["share"] is None
    assert b"nan" not in classes_csv(found)
    if images == 1:
        page = report(found, MADE_BY)
        assert says in page
        assert "nan" not in page.lower()


def test_remarks():
    given = traces()
    for _, trace in given:
        trace.weights[0] = 0.5
        trace.weights[1, 2] = 0.25
    found = by_class([*given, ("alone", given[0][1])])
    assert found.remarks() == [
        "1 of 4 classes have one image only, which says little of a class.",
        "block_0 gives all images the same weights, so no share can be computed.",
        "Expert 2 of block_1 has the same weight for all images.",
    ]
    assert found.to_json(MADE_BY)["blocks"][1]["constant_experts"] == [2]


def test_figures_for_people():
    assert [percent(share) for share in (0.274, -0.001, -0.04, float("nan"))] == ["27%", "0%", "-4%", "–"]  # noqa: RUF001
    assert [probability(p) for p in (0.0005, 0.04, float("nan"))] == ["< 0.001", "0.040", "–"]  # noqa: RUF001


# --- data


def test_csv(tmp_path):
    names = ["c# $", 'say "hi"', "=1+1"]
    found = by_class(traces(names=names))
    table = with_origin(classes_csv(found), MADE_BY).decode()
    head = [line for line in table.split("\r\n") if line.startswith("# ")]
    assert head[0] == "# model: m"
    assert f"# weights_sha256: {MADE_BY.weights_sha256}" in head
    assert f"# command: {MADE_BY.command}" in head
    rows = list(csv.DictReader(io.StringIO(table.split("\r\n", len(head))[-1])))
    assert tuple(rows[0]) == CLASS_COLUMNS
    assert len(rows) == 3 * len(BLOCKS) * 4
    one = next(row for row in rows if (row["class"], row["block"], row["expert"]) == ("c# $", "block_2", "3"))
    place = found.names.index("c# $")
    assert float(one["mean"]) == found.mean[place, 2, 3]
    assert float(one["deviation"]) == found.deviation[place, 2, 3]
    assert [float(one[f"block_{name}"]) for name in ("share", "low", "high", "p")] == [
        getattr(found.effect, name)[2] for name in ("share", "low", "high", "p")
    ]


def test_npz_holds_all_that_the_figures_are_made_of():
    given = traces()
    found = by_class(given, [f"{number}.jpg" for number in range(len(given))])
    with np.load(io.BytesIO(classes_npz(found, MADE_BY))) as arrays:
        assert json.loads(str(arrays["made_by"])) == MADE_BY.to_json()
        assert arrays["files"][3] == "3.jpg"
        again = effect_size(arrays["weights"], arrays["labels"])
        for name in ("share", "low", "high", "p", "between", "within"):
            np.testing.assert_array_equal(arrays[name], getattr(again, name))
        assert arrays["raw_share"].tolist() == again.raw.tolist()
        for number, name in enumerate(arrays["classes"]):
            mine = arrays["weights"][arrays["labels"] == number].astype(np.float64)
            assert arrays["images"][number] == len(mine)
            np.testing.assert_allclose(arrays["mean"][number], mine.mean(axis=0))
            assert name == f"class {number}"


@pytest.mark.parametrize("name", ["data.xlsx", "data", "absent/data.csv"])
def test_data_that_can_not_be_written(tmp_path, name):
    with pytest.raises(InvalidParameter):
        check_data_path(tmp_path / name)


# --- pictures


@pytest.mark.parametrize(
    ("blocks", "depths"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [0, 4, 7]), (40, [0, 20, 39])]
)
def test_depths(blocks, depths):
    assert depths_of(blocks) == depths


@pytest.mark.parametrize(("classes", "experts", "narrow"), [(1, 1, True), (9, 17, False)])
def test_plot(tmp_path, classes, experts, narrow):
    plot_by_class(by_class(traces(classes, 2, experts=experts)), tmp_path / "plot.png", narrow=narrow)
    with Image.open(tmp_path / "plot.png") as image:
        assert 300 < image.width < (520 if narrow else 1500)
        assert len(image.convert("RGB").getcolors(2**24)) > 50


def drawn(path):
    """What is written in a picture."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL)


def test_the_map_has_a_row_for_each_class_and_a_column_for_each_expert(tmp_path):
    found = by_class(traces(names=["a $x$ b", "<script>", "ünïcode"]))
    plot_by_class(found, tmp_path / "plot.svg")
    texts = drawn(tmp_path / "plot.svg")
    for row in ("all images", "a $x$ b (6)", "&lt;script&gt; (7)", "ünïcode (8)", *BLOCKS):
        assert row in texts
    assert "<script" not in (tmp_path / "plot.svg").read_text()
    for mean in (found.mean[1, 2, 3], found.overall.mean[0, 0]):
        assert f"{mean:.2f}" in texts


def test_many_classes_and_experts(tmp_path):
    """100 classes and 32 experts have room for their names; of more classes those with most images are shown."""
    trace = RoutingTrace(even_layout(BLOCKS[:1], 32), np.random.default_rng(0).random((1, 32)).astype(np.float32))
    given = [(f"class {number:03}", trace) for number in range(MAX_CLASSES + 7)]
    plot_by_class(by_class(given + given[-5:]), tmp_path / "plot.svg")
    texts = drawn(tmp_path / "plot.svg")
    rows = [text for text in texts if text.startswith("class ")]
    assert len(rows) == MAX_CLASSES
    assert rows[-1] == f"class {MAX_CLASSES + 6:03} (2)"
    assert any("the 100 classes with the most images" in text for text in texts)
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', (tmp_path / "plot.svg").read_text())[1])
    assert MAX_CLASSES * 9 < height < MAX_CLASSES * 20  # points; text has 7


def test_report_needs_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    names = ["cats", "<b>dogs</b>", "it's"]
    write_report(by_class(traces(names=names)), path, MADE_BY, failures=2)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "21 images of 3 classes" in page
    assert "2 more could not be used" in page
    assert "&lt;b&gt;dogs&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    for block in BLOCKS:
        assert f"<!-- {block} -->" in page
    assert MADE_BY.weights_sha256 in page
    assert "condconv routing &#x27;a $b$.jpg&#x27;" in page
    assert page.count("prefers-color-scheme: dark") == 1
    # Names of XML namespaces are no addresses that a browser would ask for.
    for address in re.findall(r"""(\w[\w:]*)=["'](?:https?:)?//""", page):
        assert address.startswith("xmlns")
    references = re.findall(r"""(?:href|src)=["']([^"']+)|url\(([^)]+)\)""", page)
    assert all((a or b).startswith("#") for a, b in references)


def test_report_of_many_classes_stays_readable(monkeypatch):
    for module in (report_module, plot_classes):
        monkeypatch.setattr(module, "MAX_CLASSES", 4)
    monkeypatch.setattr(report_module, "MAX_ROWS", 6)
    trace = RoutingTrace(even_layout(BLOCKS[:1], 2), np.full((1, 2), 0.5, np.float32))
    page = report(by_class([(f"class {number}", trace) for number in range(9)]), MADE_BY)
    assert "The first 6 of 9 classes" in page
    assert "Shown are the 4 with the most images" in page
    assert page.count("<!-- class ") == 4


@pytest.mark.parametrize("name", ["report.txt", "report", "absent/report.html"])
def test_a_report_that_can_not_be_written(tmp_path, name):
    with pytest.raises(InvalidParameter):
        check_report_path(tmp_path / name)


def test_a_static_network():
    with pytest.raises(InvalidParameter, match="static"):
        by_class([("a", RoutingTrace(RoutingLayout(), np.zeros((0, 0), np.float32)))])
