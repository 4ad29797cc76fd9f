"""`condconv models evaluate`, with a network that is a stand-in."""

import _thread
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from condconv_serve import bootstrap
from condconv_serve.domain import Label
from condconv_serve.settings import Settings
from condconv_serve.store import write_bundle
from tests.contract.fake_server import load_fake
from tests.contract.fakes import FunctionEngine
from tests.pictures import jpeg, photo
from tests.unit.cli.commands import condconv
from tests.unit.store.samples import new_bundle

CLASSES = 8


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CONDCONV_STREAMS", "1")
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    monkeypatch.setitem(sys.modules, "openvino", None)  # not even looked for
    monkeypatch.chdir(tmp_path)
    routing = {"block_4_routing/bias": np.zeros(4, np.float32)}
    weights = {"logits/bias": np.zeros(CLASSES, np.float32), **routing}
    labels = [Label(index, f"class {index}", f"n{index}") for index in range(CLASSES)]
    architecture = {"name": "efficientnet-lite0-condconv-4e", "num_classes": CLASSES}
    write_bundle(tmp_path / "store", new_bundle(name="fake", weights=weights, labels=labels, architecture=architecture))


@pytest.fixture
def data(tmp_path):
    """Photos in folders: what the stand-in answers for them has nothing to do with these classes."""
    names = ("coffee", "cat", "rocket", "astronaut")
    for number in range(12):
        folder = tmp_path / "data" / ("class_0", "n1", "2")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.jpg").write_bytes(jpeg(photo(names[number % 4], (90 + number, 70))))
    return tmp_path / "data"


def test_figures_are_those_of_predictions(data):
    """The same images by `condconv predict`, and the figures by hand."""
    code, out, err = condconv("models", "evaluate", "fake", data, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    answers = json.loads(condconv("predict", data, "--json", "--top-k", 5)[1])["predictions"]
    truth = {"class_0": 0, "n1": 1, "2": 2}
    known = [(truth[answer["filename"].split("/")[-2]], answer["classes"]) for answer in answers]
    top1 = np.mean([classes[0]["index"] == right for right, classes in known])
    top5 = np.mean([right in [one["index"] for one in classes] for right, classes in known])
    assert 0 < top5 < 1
    assert (found["images"], found["top1"]["share"], found["top5"]["share"]) == (12, top1, top5)
    assert found["top1"]["low"] < max(top1, 1e-9)
    assert found["model"] == {"name": "fake", "version": "1"}
    confidence = np.mean([classes[0]["probability"] for _, classes in known])
    assert found["calibration"]["mean_confidence"] == pytest.approx(confidence)
    assert len(found["calibration"]["bins"]) == 15
    order = found["confusion"]["classes"]
    for index in (0, 1, 2):
        mine = [classes[0]["index"] for right, classes in known if right == index]
        row = found["confusion"]["matrix"][order.index(index)]
        assert row == [mine.count(other) for other in order]
    assert [(one["index"], one["label"], one["images"]) for one in found["classes"]][:3] == [
        (0, "class 0", 4),
        (1, "class 1", 4),
        (2, "class 2", 4),
    ]
    assert "interrupted" not in found
    assert f"[{', '.join(map(str, order))}]" in out, "numbers that belong together are on a line"


def test_what_people_read(data):
    code, out, err = condconv("models", "evaluate", "fake/1", data)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "fake/1: 12 images of 3 classes"
    assert [line.split()[0] for line in lines[1:7]] == [
        "top-1",
        "top-5",
        "mean",
        "mean",
        "calibration",
        "cross-entropy",
    ]
    assert "95 % interval" in lines[1]
    assert lines[7].split() == ["class", "images", "recall", "precision"]
    assert lines[8].split()[:3] == ["class", "0", "4"]
    assert any(" taken for " in line for line in lines)


def test_damaged_images(data):
    for number in range(9):
        (data / "n1" / f"bad{number}.jpg").write_bytes(b"no image")
    code, out, err = condconv("models", "evaluate", "fake", data)
    assert code == 1
    assert out.splitlines()[0] == "fake/1: 12 images of 3 classes, 9 more left out"
    assert len([line for line in err.splitlines() if "no image of an accepted format" in line]) == 8
    assert "and 1 more that can't be used; --json names them all" in err
    left_out = json.loads(condconv("models", "evaluate", "fake", data, "--json")[1])["left_out"]
    assert sorted(one["filename"] for one in left_out["images"]) == [
        str(data / "n1" / f"bad{number}.jpg") for number in range(9)
    ]


def test_nothing_but_damaged_images(tmp_path):
    (tmp_path / "bad" / "2").mkdir(parents=True)
    (tmp_path / "bad" / "2" / "a.jpg").write_bytes(b"no image")
    code, out, err = condconv("models", "evaluate", "fake", tmp_path / "bad")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: None of the 1 images could be judged; the first one, ")


def test_folders_that_are_no_class(data, monkeypatch):
    (data / "dogs").mkdir()
    (data / "dogs" / "a.jpg").write_bytes(b"no image")
    with monkeypatch.context() as patched:
        patched.setattr(bootstrap, "load_model", None)  # nothing is loaded
        code, out, err = condconv("models", "evaluate", "fake", data)
    assert (code, out) == (1, "")
    assert "1 of 4 folders are no class of the model: dogs" in err
    code, out, err = condconv("models", "evaluate", "fake", data, "--skip-unknown", "--json")
    assert code == 0
    assert err == "data: left out: 1 folder that is no class: dogs.\n".replace("data", str(data))
    assert json.loads(out)["left_out"] == {"images": [], "folders": ["dogs"]}


def test_the_rest_survives_ctrl_c(data, monkeypatch):
    calls = []

    def load(*given, **options):
        model = load_fake(*given, **options)

        def compute(rows, stream):
            calls.append(len(rows))
            if len(calls) == 5 + 1:  # the first call warms up
                _thread.interrupt_main()
            return model.engine(rows, stream)

        return replace(model, engine=FunctionEngine(compute))

    monkeypatch.setattr(bootstrap, "load_model", load)
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "1")
    code, out, err = condconv("models", "evaluate", "fake", data, "--json")
    assert code == 130
    found = json.loads(out)
    assert found["interrupted"] is True
    assert 2 <= found["images"] < 11
    assert err == f"interrupted after {found['images']} of 12 images, which were taken at random\n"


def test_lines_tell_how_far_it_is(tmp_path):
    (tmp_path / "many" / "2").mkdir(parents=True)
    content = jpeg(photo("cat", (40, 40)))
    for number in range(100):
        (tmp_path / "many" / "2" / f"{number}.jpg").write_bytes(content)
    _, _, err = condconv("models", "evaluate", "fake", tmp_path / "many")
    lines = err.splitlines()
    assert len(lines) == 10
    assert [line.split(" images, top-1 ")[0] for line in lines] == [f"{n} of 100" for n in range(10, 101, 10)]


@pytest.mark.tensorflow  # matplotlib takes its time
def test_a_picture(data, tmp_path):
    code, _, err = condconv("models", "evaluate", "fake", data, "--plot", tmp_path / "q.svg", "--theme", "dark")
    assert (code, err) == (0, f"wrote {tmp_path / 'q.svg'}\n")
    assert "fake/1, weights " in (tmp_path / "q.svg").read_text()
    code, out, err = condconv("models", "evaluate", "fake", data, "--plot", tmp_path / "q.txt")
    assert (code, out) == (1, "")
    assert "a plot is written as .png, .svg, .pdf" in err
