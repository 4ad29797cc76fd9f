"""`condconv detect`, with a network that is a stand-in: it finds what is red, green, or blue."""

import _thread
import io
import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from condconv_serve import bootstrap
from condconv_serve.cli import app, output
from condconv_serve.drawing.colours import colour_of
from condconv_serve.settings import Settings
from tests.contract.fake_server import load_fake
from tests.contract.fakes import FunctionEngine
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.pictures import oriented, png

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WIDTH, HEIGHT = 160, 80


def picture(*patches, size=(WIDTH, HEIGHT)):
    """A grey photo with patches of one colour each: colour, and place in eighths from the left and from the top."""
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    for colour, column, row in patches:
        x, y = size[0] // 8, size[1] // 8
        pixels[row * y : (row + 1) * y, column * x : (column + 1) * x] = colour
    return pixels


PHOTO = picture((RED, 1, 2), (BLUE, 6, 5))


@pytest.fixture(scope="module")
def made_store(tmp_path_factory):
    store = tmp_path_factory.mktemp("made") / "store"
    write_colour_detector(store)
    write_fake(store, "fake", 1)
    return store


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path, made_store):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(made_store))
    monkeypatch.setenv("CONDCONV_DEFAULT_MODEL", "colours")
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "1")
    monkeypatch.setenv("CONDCONV_STREAMS", "1")
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    monkeypatch.setitem(sys.modules, "openvino", None)  # not even looked for
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(png(PHOTO))


def condconv(*arguments, given=b""):
    """Run the command here; returns exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def computing(before):
    """What loads the model; `before` gets the number of each call of its engine, the first of which warms up."""
    calls = []

    def load(*given, **options):
        model = load_fake(*given, **options)

        def compute(rows, stream):
            calls.append(1)
            before(len(calls))
            return model.engine(rows, stream)

        return replace(model, engine=FunctionEngine(compute))

    return load


def spoil(folder):
    (folder / "photo.png").write_bytes(b"no image any more")


def test_a_table():
    code, out, err = condconv("detect", "photo.png")
    assert (code, err) == (0, "colours/1, computed by numpy in float32 on CPU: a fake\n")
    assert [line.split() for line in out.splitlines()] == [
        ["photo.png", "160", "x", "80", "pixels,", "2", "objects"],
        ["label", "score", "xmin", "ymin", "xmax", "ymax"],
        ["red", "95.1%", "20.0", "20.0", "40.0", "30.0"],
        ["blue", "95.1%", "120.0", "50.0", "140.0", "60.0"],
    ]


def test_nothing_is_found(tmp_path):
    (tmp_path / "grey.png").write_bytes(png(picture()))
    code, out, _ = condconv("detect", "grey.png", "--plot", "drawn")
    assert (code, out) == (0, "grey.png  160 x 80 pixels, no object\n")
    np.testing.assert_array_equal(np.asarray(Image.open("drawn/grey.png")), picture())


def test_json_is_the_http_answers():
    code, out, err = condconv("detect", "photo.png", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["model"] == {"name": "colours", "version": "1"}
    (entry,) = document["predictions"]
    assert entry.keys() == {"id", "filename", "width", "height", "detections", "timings_ms", "batch_size"}
    assert (entry["width"], entry["height"]) == (160, 80)
    assert entry["detections"][0] == {
        "index": 0,
        "label": "red",
        "score": pytest.approx(0.951, abs=1e-3),
        "box": {"xmin": 20.0, "ymin": 20.0, "xmax": 40.0, "ymax": 30.0},
        "box_normalized": {"xmin": 0.125, "ymin": 0.25, "xmax": 0.25, "ymax": 0.375},
    }


def test_lines_with_routing_and_a_failure(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, _ = condconv("detect", "bad.png", "photo.png", "--json-lines", "--routing")
    bad, good = (json.loads(line) for line in out.splitlines())
    assert code == 1
    assert bad["error"]["slug"] == "unsupported_image"
    assert {block: len(weights) for block, weights in good["routing"].items()} == {"block_1": 3, "block_2": 3}
    _, out, _ = condconv("detect", "photo.png", "--routing")
    assert [line.split()[1] for line in out.splitlines() if "block_" in line] == ["block_1", "block_2"]


def test_routing_of_a_detector(tmp_path):
    code, out, _ = condconv("routing", "photo.png", "--data", "routing.csv", "--plot", "routing.svg")
    assert (code, out.splitlines()[0]) == (0, "photo.png: 1 red, 1 blue")
    assert [line.split()[1] for line in out.splitlines() if "block_" in line] == ["block_1", "block_2"]
    table = [line for line in (tmp_path / "routing.csv").read_text().splitlines() if not line.startswith("#")]
    assert len(table) == 1 + 2 * 3
    (entry,) = json.loads(condconv("routing", "photo.png", "--json")[1])["predictions"]
    assert [found["label"] for found in entry["detections"]] == ["red", "blue"]
    assert entry["routing"].keys() == {"block_1", "block_2"}


def test_thresholds(tmp_path):
    (tmp_path / "pale.png").write_bytes(png(picture((RED, 1, 2), ((255, 150, 150), 4, 4), (GREEN, 6, 6))))
    for options, labels in (
        ([], ["red", "green"]),
        (["--score-threshold", 0.3], ["red", "green", "red"]),
        (["--score-threshold", 0.3, "--max-detections", 2], ["red", "green"]),
        (["--score-threshold", 1], []),
    ):
        (entry,) = json.loads(condconv("detect", "pale.png", "--json", *options)[1])["predictions"]
        assert [found["label"] for found in entry["detections"]] == labels, options


@pytest.mark.parametrize(
    "option",
    [
        ("--score-threshold", "1.1"),
        ("--score-threshold", "nan"),
        ("--iou-threshold", "-1"),
        ("--max-detections", "0"),
        ("--max-detections", "1001"),
        ("--max-detections", "many"),
    ],
)
def test_impossible_options(option):
    code, out, _ = condconv("detect", "photo.png", *option)
    assert (code in (1, 2), out) == (True, "")


@pytest.mark.parametrize(
    ("command", "model", "says"),
    [
        ("detect", "fake", "error: fake is a model for classification: it finds no boxes.\n"),
        ("predict", "colours", "error: colours is a model for detection: it doesn't classify whole images.\n"),
    ],
)
def test_a_model_for_something_else(command, model, says, tmp_path):
    more = ["--plot", "drawn"] if command == "detect" else []
    assert condconv(command, "photo.png", "--model", model, *more) == (1, "", says)
    assert not (tmp_path / "drawn").exists()


class TestPlot:
    def test_boxes_over_the_upright_photo(self, tmp_path):
        """A camera that was held on its side."""
        upright = picture((RED, 1, 2), (GREEN, 6, 5), size=(160, 240))
        (tmp_path / "camera.jpg").write_bytes(oriented(upright, 6, "JPEG", quality=95, subsampling=0))
        code, _, err = condconv("detect", "camera.jpg", "--plot", "drawn/deep", "--json-lines")
        assert (code, err) == (0, "wrote 1 picture to drawn/deep\n")
        with Image.open("drawn/deep/camera.png") as drawn:
            assert (drawn.size, drawn.mode) == ((160, 240), "RGB")
            assert drawn.getpixel((20, 60)) == drawn.getpixel((39, 89)) == colour_of(0)
            assert drawn.getpixel((120, 150)) == colour_of(1)
            assert drawn.info["Software"].startswith("condconv-serve ")
            assert drawn.info["Description"].startswith("colours/1, weights ")

    def test_photos_of_one_name(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            shutil.copy("photo.png", tmp_path / folder)
        code, _, err = condconv("detect", "a", "b", "-", "--plot", "drawn", given=png(PHOTO))
        assert (code, err.splitlines()[-1]) == (0, "wrote 3 pictures to drawn")
        assert sorted(os.listdir("drawn")) == ["a-photo.png", "b-photo.png", "stdin.png"]

    def test_what_is_there_already(self, tmp_path):
        """A picture of an earlier run is replaced; photos, links and folders stay."""
        before = (tmp_path / "photo.png").read_bytes()
        shutil.copy("photo.png", "photo-3.png")
        os.symlink(tmp_path / "photo.png", "photo-2.png")
        for _ in range(2):
            assert condconv("detect", "photo.png", "photo-3.png", "--plot", ".")[0] == 0
        assert sorted(os.listdir(tmp_path)) == [
            "photo-2.png",
            "photo-3-2.png",
            "photo-3.png",
            "photo-4.png",
            "photo.png",
        ]
        assert (tmp_path / "photo.png").read_bytes() == (tmp_path / "photo-3.png").read_bytes() == before

    def test_only_what_has_an_answer_is_drawn(self, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"no image")
        code, out, err = condconv("detect", "bad.png", "photo.png", "--plot", "drawn", "--json")
        assert (code, err) == (1, "wrote 1 picture to drawn\n")
        assert len(json.loads(out)["predictions"]) == 2
        assert os.listdir("drawn") == ["photo.png"]

    def test_a_folder_that_can_not_be(self):
        code, out, err = condconv("detect", "photo.png", "--plot", "photo.png/drawn")
        assert (code, out) == (1, "")
        assert err == "error: photo.png/drawn: pictures are written to a folder, and {} is a file.\n".format(
            os.path.abspath("photo.png")
        )

    def test_a_full_disk(self, monkeypatch, tmp_path):
        """Answers are printed all the same, and each picture that is missing is named."""

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("condconv_serve.cli.pictures.write_whole", full)
        code, out, err = condconv("detect", "photo.png", "--plot", "drawn", "--json")
        assert (code, len(json.loads(out)["predictions"])) == (1, 1)
        assert err == "drawn/photo.png: The picture can't be written: No space left on device.\n"
        assert os.listdir("drawn") == []

    def test_a_photo_that_is_replaced_meanwhile(self, monkeypatch, tmp_path):
        """The picture shows what was looked at."""
        monkeypatch.setattr(bootstrap, "load_model", computing(lambda calls: calls == 2 and spoil(tmp_path)))
        assert condconv("detect", "photo.png", "--plot", "drawn")[0] == 0
        with Image.open("drawn/photo.png") as drawn:
            assert drawn.getpixel((20, 20)) == colour_of(0)


def test_ctrl_c(monkeypatch, tmp_path):
    """What was printed is whole, and each picture is."""
    for number in range(12):
        shutil.copy("photo.png", tmp_path / f"{number:02}.png")
    monkeypatch.setattr(bootstrap, "load_model", computing(lambda calls: calls == 6 and _thread.interrupt_main()))
    code, out, err = condconv("detect", *sorted(tmp_path.glob("??.png")), "--plot", "drawn", "--json")
    assert code == 130
    document = json.loads(out)
    assert document["interrupted"] is True
    assert sorted(os.listdir("drawn")) == [f"{number:02}.png" for number in range(len(document["predictions"]))]
    for name in os.listdir("drawn"):
        with Image.open(f"drawn/{name}") as drawn:
            drawn.load()
    assert f"wrote {len(document['predictions'])} picture" in err


def test_nobody_reads_what_is_printed(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patched, open(writing, "w") as pipe:
        patched.setattr(sys, "stdout", pipe)
        patched.setattr(sys, "stderr", said := io.StringIO())
        with pytest.raises(SystemExit) as ended:
            app(["detect", "photo.png"])
    with output.out.capture():  # the line that nobody read is not for the next test
        pass
    assert (ended.value.code, "error" in said.getvalue()) == (141, False)
