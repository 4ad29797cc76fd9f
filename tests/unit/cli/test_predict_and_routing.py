"""`condconv predict` and `condconv routing` with the model that is shipped."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from condconv_serve import bootstrap
from tests.contract.fake_server import load_fake
from tests.contract.fakes import FunctionEngine
from tests.e2e.tiny_models import write_fake, write_tiny
from tests.pictures import jpeg, photo
from tests.unit.cli.commands import MODEL, condconv, in_own_process
from tests.unit.store.samples import default_model

pytestmark = pytest.mark.tensorflow

BLOCKS = [f"block_{i}" for i in range(8, 16)]


@pytest.fixture(autouse=True)
def _environment(shipped_store):
    pass


@pytest.fixture
def _loaded_once(monkeypatch):
    """All commands share one engine; one test in a process of its own loads for itself."""
    monkeypatch.setattr(bootstrap, "load_model", lambda bundle, plan, *, metrics=None: shared_model())


def shared_model():
    """The model that is shipped, whose engine stays open when a command closes it."""
    model = default_model()
    return replace(model, engine=FunctionEngine(model.engine))


def test_predict_in_a_process_of_its_own(photos, tmp_path):
    write_tiny(tmp_path, "tiny", 1)
    result = in_own_process(
        "-m",
        "condconv_serve",
        "predict",
        photos / "coffee.jpg",
        "--json",
        "--top-k",
        "2",
        CONDCONV_MODEL_STORE=str(tmp_path),
        CONDCONV_MAX_BATCH_SIZE="1",
    )
    assert result.stderr == "", "no chatter"
    assert result.returncode == 0
    (prediction,) = json.loads(result.stdout)["predictions"]
    assert [scored["index"] for scored in prediction["classes"]][:1] == [1]
    assert len(prediction["classes"]) == 2


@pytest.mark.usefixtures("_loaded_once")
class TestPredict:
    def test_text(self, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", photos / "cat.JPEG", "--top-k", 3)
        assert code == 0
        assert re.fullmatch(rf"{MODEL}/1, computed by tensorflow in (float32|bfloat16) on CPU: [a-z].*\n", err)
        lines = out.splitlines()
        assert lines[0] == str(photos / "coffee.jpg")
        assert lines[1].split("%")[1].strip() == "espresso"
        assert float(lines[1].split("%")[0]) > 50
        assert lines[4] == str(photos / "cat.JPEG")
        assert "tabby" in "".join(lines[5:])
        assert len(lines) == 8

    def test_json(self, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", "--json")
        assert (code, err) == (0, "")
        answer = json.loads(out)
        assert answer["model"] == {"name": MODEL, "version": "1"}
        assert answer["computed_by"].keys() == {"engine", "precision", "device", "reason", "native"}
        (prediction,) = answer["predictions"]
        assert prediction.keys() == {"id", "filename", "classes", "timings_ms", "batch_size"}
        assert prediction["filename"] == prediction["id"] == str(photos / "coffee.jpg")
        assert len(prediction["classes"]) == 5
        best = prediction["classes"][0]
        assert (best["index"], best["label"], best["synset"]) == (967, "espresso", "n07920052")
        assert 0.5 < best["probability"] < 1
        assert prediction["timings_ms"].keys() == {"decode", "queue", "inference", "total"}

    @pytest.mark.parametrize(
        ("argument", "found"),
        [
            ("", ["cat.JPEG", "coffee.jpg", "more/rocket.jpg"]),
            ("*.jpg", ["coffee.jpg"]),
            ("**/*.jpg", ["coffee.jpg", "more/rocket.jpg"]),
            ("c*.[jJ]*", ["cat.JPEG", "coffee.jpg"]),
        ],
        ids=["directory", "glob", "recursive glob", "glob with a set"],
    )
    def test_directories_and_globs(self, argument, found, photos):
        code, out, _ = condconv("predict", f"{photos}/{argument}", "--json", "--top-k", 1)
        assert code == 0
        assert [p["filename"] for p in json.loads(out)["predictions"]] == [str(photos / name) for name in found]

    def test_many_images_keep_their_order(self, photos):
        names = ["coffee.jpg", "cat.JPEG", "more/rocket.jpg"] * 4
        code, out, _ = condconv("predict", *(photos / name for name in names), "--json", "--top-k", 1)
        assert code == 0
        predictions = json.loads(out)["predictions"]
        assert [p["filename"] for p in predictions] == [str(photos / name) for name in names]
        best = [p["classes"][0]["label"] for p in predictions]
        assert best == best[:3] * 4
        assert len(set(best)) == 3

    def test_a_bad_image_among_good_ones(self, photos):
        files = [photos / name for name in ("coffee.jpg", "notes.txt", "cat.JPEG")]
        code, out, err = condconv("predict", *files, "--top-k", 1)
        assert code == 1
        assert [line for line in out.splitlines() if line.startswith("/")] == [str(files[0]), str(files[2])]
        (failure,) = err.splitlines()[1:]
        assert failure.startswith(f"{files[1]}: ")
        assert "JPEG, PNG" in failure

        code, out, err = condconv("predict", *files, "--json")
        assert (code, err) == (1, "")
        predictions = json.loads(out)["predictions"]
        assert [p.get("error", {}).get("slug") for p in predictions] == [None, "unsupported_image", None]

    def test_a_file_that_is_too_large(self, photos, monkeypatch):
        monkeypatch.setenv("CONDCONV_MAX_BODY_BYTES", "1024")
        code, out, err = condconv("predict", photos / "coffee.jpg")
        assert (code, out) == (1, "")
        assert "the most allowed is 1024." in err

    def test_names_are_printed_as_they_are(self, photos, tmp_path):
        strange = tmp_path / "[" / "b] [red]:cat: $x$ 100%.jpg"
        strange.parent.mkdir()
        shutil.copy(photos / "coffee.jpg", strange)
        broken = tmp_path / "[" / "bold] [broken].jpg"
        broken.write_text("no image")
        code, out, err = condconv("predict", strange, broken, "--top-k", 1)
        assert code == 1
        assert out.splitlines()[0] == str(strange)
        assert err.splitlines()[1].startswith(f"{broken}: ")
        code, out, err = condconv("routing", strange, "--plot", tmp_path / "[" / "plot] [red].png")
        assert code == 0
        assert "[/b] [red]:cat: $x$ 100%.jpg: espresso" in out
        assert err.splitlines()[1:] == [f"wrote {tmp_path}/[/plot] [red].png"]

    def test_long_names_and_labels_stay_on_a_line(self, photos, tmp_path, monkeypatch):
        info = default_model().info
        labels = tuple(replace(label, label=f"{label.label} {'x' * 300}\x1b[2J") for label in info.labels)
        named = replace(info, labels=labels)
        monkeypatch.setattr(bootstrap, "load_model", lambda *_, **__: replace(shared_model(), info=named))
        file = tmp_path / "y" / ("n" * 200) / "photo.jpg"
        file.parent.mkdir(parents=True)
        shutil.copy(photos / "coffee.jpg", file)
        _, out, _ = condconv("predict", file, "--top-k", 1)
        name, best = out.splitlines()
        assert name == str(file)
        assert best.endswith(f"%  espresso {'x' * 300}\\x1b[2J")
        _, out, _ = condconv("routing", file)
        assert out.splitlines()[0].startswith(f"{file}: espresso {'x' * 300}\\x1b[2J (")

    def test_more_classes_than_there_are(self, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", "--top-k", 1001)
        assert (code, out) == (1, "")
        assert err == f"error: top_k must be from 1 to 1000, the number of classes of {MODEL}, not 1001.\n"


@pytest.mark.usefixtures("_loaded_once")
def test_predict_answers_the_good_and_names_the_bad(tmp_path):
    (tmp_path / "coffee.jpg").write_bytes(jpeg(photo("coffee")))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    code, out, _ = condconv("predict", tmp_path, "--top-k", "2", "--json")
    assert code == 1
    bad, good = json.loads(out)["predictions"]
    assert bad["error"]["slug"] == "unsupported_image"
    assert good["classes"][0]["label"] == "espresso"
    assert len(good["classes"]) == 2


@pytest.mark.usefixtures("_loaded_once")
class TestRouting:
    def test_table_and_plot(self, photos, tmp_path):
        plot = tmp_path / "routing.png"
        code, out, err = condconv("routing", photos / "*.jpg", photos / "cat.JPEG", "--plot", plot)
        assert code == 0
        assert [line.partition(",")[0] for line in err.splitlines()] == [f"{MODEL}/1", f"wrote {plot}"]
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "block_" in line]
        assert [row[0] for row in rows] == BLOCKS * 2
        weights = np.array([row[1:] for row in rows], float)
        assert weights.shape == (16, 4)
        assert 0 <= weights.min() < weights.max() <= 1
        with Image.open(plot) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100

    def test_json(self, photos):
        code, out, _ = condconv("routing", photos / "coffee.jpg", "--json")
        assert code == 0
        (prediction,) = json.loads(out)["predictions"]
        assert list(prediction["routing"]) == BLOCKS
        assert {len(weights) for weights in prediction["routing"].values()} == {4}

    def test_bad_images_only(self, photos, tmp_path):
        code, out, err = condconv("routing", photos / "notes.txt", "--plot", tmp_path / "routing.png")
        assert (code, out) == (1, "")
        assert err.splitlines()[1].startswith(f"{photos / 'notes.txt'}: ")
        assert not (tmp_path / "routing.png").exists()


def test_names_that_are_no_utf8(photos, tmp_path, monkeypatch):
    write_fake(store := tmp_path / "store", "fake", 1)
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xe9")
    os.mkdir(folder)
    file = os.path.join(folder, os.fsdecode(b"caf\xe9.jpg"))
    shutil.copy(photos / "coffee.jpg", file)
    shown = f"{tmp_path}/f\\xe9/caf\\xe9.jpg"
    given = {"PYTHONIOENCODING": "utf-8:strict", "CONDCONV_MAX_BATCH_SIZE": "1", "CONDCONV_MODEL_STORE": str(store)}
    result = in_own_process("-m", "tests.contract.fake_server", "predict", file, "--top-k", "1", **given)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, shown), result.stderr
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    report = tmp_path / "report.html"
    more = ("--by", "class", "--report", report, "--plot", tmp_path / "plot.png", "--model-store", store)
    code, out, err = condconv("routing", file, photos / "cat.JPEG", *more, "--json")
    assert code == 0, err
    assert {entry["name"] for entry in json.loads(out)["classes"]} == {r"f\xe9", photos.name}
    assert r"f\xe9" in report.read_text(encoding="utf-8")
