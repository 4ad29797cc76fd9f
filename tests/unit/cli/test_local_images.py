"""Images on the command line: where they come from, and how their results appear, with a network that is a stand-in."""

import _thread
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from condconv_serve import bootstrap
from condconv_serve.cli import app, output
from condconv_serve.errors import BundleError
from condconv_serve.settings import Settings
from condconv_serve.store.aliases import set_alias
from tests.contract.fake_server import PATCH_FEATURES, load_fake
from tests.contract.fakes import FunctionEngine
from tests.e2e.tiny_models import write_fake
from tests.pictures import jpeg, photo

ROOT = Path(__file__).parents[3]
PHOTO = jpeg(photo("coffee", (80, 60)))


@pytest.fixture(scope="module")
def made_store(tmp_path_factory):
    """A store of three versions, to be copied: writing one takes a while, since a store's files are flushed."""
    store = tmp_path_factory.mktemp("made") / "store"
    for version in (1, 2, 3):
        write_fake(store, "fake", version)
    return store


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path, made_store):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "1")
    monkeypatch.setenv("CONDCONV_STREAMS", "1")
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    monkeypatch.setitem(sys.modules, "openvino", None)  # not even looked for
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made_store, tmp_path / "store")


@pytest.fixture
def photos(tmp_path):
    """Twelve photos, the third of which is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.jpg").write_bytes(PHOTO if number != 2 else b"no image")
    return folder


def condconv(*arguments, given=b""):
    """Run the command here; returns exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def _interrupted_at_five(monkeypatch):
    """The user presses Ctrl-C while the fifth photo is computed."""
    calls = []

    def load(*given, **options):
        model = load_fake(*given, **options)

        def compute(rows, stream):
            calls.append(1)
            if len(calls) == 5 + 1:  # the first call warms up
                _thread.interrupt_main()
            return model.engine(rows, stream)

        return replace(model, engine=FunctionEngine(compute))

    monkeypatch.setattr(bootstrap, "load_model", load)


@pytest.mark.usefixtures("_interrupted_at_five")
class TestInterrupted:
    def test_text(self, photos):
        code, out, err = condconv("predict", photos, "--top-k", 1)
        assert code == 130
        names = out.splitlines()[::2]
        assert 2 <= len(names) < 10
        assert names == [str(photos / f"{number:02}.jpg") for number in (0, 1, *range(3, 12))][: len(names)]
        assert err.splitlines()[-1] == f"interrupted after {len(names) + 1} of 12 images"

    def test_a_document_is_whole(self, photos):
        code, out, _ = condconv("routing", photos, "--json")
        assert code == 130
        document = json.loads(out)
        assert document["interrupted"] is True
        assert document["model"] == {"name": "fake", "version": "3"}
        assert 3 <= len(document["predictions"]) < 11
        assert document["predictions"][2]["error"]["slug"] == "unsupported_image"

    def test_lines_are_whole(self, photos):
        code, out, _ = condconv("predict", photos, "--json-lines")
        assert code == 130
        assert 3 <= len([json.loads(line) for line in out.splitlines()]) < 11

    @pytest.mark.tensorflow  # matplotlib takes its time
    def test_classes_of_what_is_there(self, photos):
        code, out, err = condconv("routing", photos, "--by", "class")
        assert code == 130
        done = int(err.split("interrupted after ")[1].split()[0])
        assert f"{done - 1} images of 1 classes" in out


def test_ctrl_c_while_a_library_is_imported(photos, monkeypatch):
    """Libraries of C make an error of their own of it."""

    def load(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as pressed:
            failed = ImportError("initialization failed")
            failed.__cause__ = pressed
        raise BundleError("The engine can't be imported.") from failed

    monkeypatch.setattr(bootstrap, "load_model", load)
    assert condconv("predict", photos / "00.jpg") == (130, "", "interrupted\n")


def test_results_come_before_the_last_image_is_read(photos, tmp_path):
    """The last image is a pipe that nobody writes to until the first results are there and nobody reads any more."""
    os.mkfifo(pipe := tmp_path / "last.jpg")
    command = [sys.executable, "-m", "tests.contract.fake_server", "predict", photos, pipe, "--json-lines"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [json.loads(process.stdout.readline()) for _ in range(12)]
        process.stdout.close()
        pipe.write_bytes(PHOTO)
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")
    assert [line["filename"] for line in lines] == [str(photos / f"{number:02}.jpg") for number in range(12)]
    assert [number for number, line in enumerate(lines) if "error" in line] == [2]
    assert {line["model"]["version"] for line in lines} == {"3"}


def test_a_document_has_every_result_whatever_failed(photos):
    code, out, err = condconv("predict", photos, "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert document.keys() == {"model", "computed_by", "predictions"}
    assert ["error" in entry for entry in document["predictions"]] == [number == 2 for number in range(12)]
    (photos / "00.jpg").write_bytes(b"no image")
    code, out, _ = condconv("predict", photos / "00.jpg", "--json")
    assert (code, len(json.loads(out)["predictions"])) == (1, 1)


def test_two_kinds_of_json(photos):
    code, out, err = condconv("predict", photos, "--json", "--json-lines")
    assert (code, out) == (2, "")
    assert "not both" in err
    code, out, err = condconv("routing", photos, "--by", "class", "--json-lines")
    assert (code, out, err) == (1, "", "error: Lines of JSON are for images: use --json for classes.\n")


class TestWhichModel:
    @pytest.mark.parametrize(
        ("model", "version"), [("fake", "3"), ("fake/1", "1"), ("fake/old", "2"), ("fake/default", "3"), (None, "3")]
    )
    def test_predict(self, model, version, tmp_path, photos):
        set_alias(tmp_path / "store", "fake", "old", {"2": 1})
        set_alias(tmp_path / "store", "fake", "default", {"3": 1})
        option = [] if model is None else ["--model", model]
        code, out, err = condconv("predict", photos / "00.jpg", *option, "--top-k", 1)
        assert (code, err) == (0, f"fake/{version}, computed by numpy in float32 on CPU: a fake\n")
        assert out.endswith(f"class {version}\n")

    def test_routing(self, photos):
        code, out, _ = condconv("routing", photos / "00.jpg", "--model", "fake/2", "--json")
        assert (code, json.loads(out)["model"]) == (0, {"name": "fake", "version": "2"})

    def test_no_other_version_is_loaded(self, tmp_path, photos):
        (tmp_path / "store" / "fake" / "3" / "weights.safetensors").write_bytes(b"damaged")
        assert condconv("predict", photos / "00.jpg", "--model", "fake/1")[0] == 0
        code, out, err = condconv("predict", photos / "00.jpg")
        assert (code, out) == (1, "")
        assert err.startswith("error: fake/3: weights.safetensors has ")

    @pytest.mark.parametrize(
        ("command", "given"),
        [
            (("predict", "photos", "--model"), ""),
            (("routing", "photos", "--model"), "/"),
            (("bench", "engine", "--model"), "fake/"),
            (("models", "profile", "--images", "photos"), "/1"),
            (("models", "show"), "fake/1/2"),
            (("models", "verify"), "fake/1/"),
            (("models", "finetune", "--data", "photos", "--name", "new"), "fake/"),
        ],
    )
    @pytest.mark.usefixtures("photos")
    def test_wrong_forms(self, command, given):
        code, out, err = condconv(*command, given)
        assert (code, out) == (1, "")
        assert err == f"error: {given!r} is no model. Write NAME, NAME/VERSION or NAME/ALIAS; there are: fake.\n"


class TestStandardInput:
    def test_an_image(self):
        code, out, _ = condconv("predict", "-", "--top-k", 1, given=PHOTO)
        assert (code, out) == (0, "-\n  100.00%  class 3\n")
        code, out, _ = condconv("predict", "-", "--json", given=PHOTO)
        assert json.loads(out)["predictions"][0]["filename"] == "-"

    def test_among_files(self, photos):
        code, out, _ = condconv("predict", photos / "00.jpg", "-", photos / "01.jpg", "--top-k", 1, given=PHOTO)
        assert code == 0
        assert out.splitlines()[::2] == [str(photos / "00.jpg"), "-", str(photos / "01.jpg")]

    @pytest.mark.parametrize(
        ("arguments", "given", "says"),
        [
            (["predict", "-"], b"", "Standard input is empty: no image came through it."),
            (["predict", "-", "-"], PHOTO, "Standard input holds one image: give - once."),
            (["predict", "-"], bytes(1025), "Standard input has more than 1024 bytes, the most allowed."),
            (["models", "profile", "fake", "--images", "-"], PHOTO, "Images can't come from standard input here"),
        ],
    )
    def test_none(self, arguments, given, says, monkeypatch):
        monkeypatch.setenv("CONDCONV_MAX_BODY_BYTES", "1024")
        code, out, err = condconv(*arguments, given=given)
        assert (code, out) == (1, "")
        assert says in err

    def test_a_terminal(self, monkeypatch):
        ours, theirs = os.openpty()
        with open(theirs) as terminal, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", terminal)
            patched.setattr(sys, "stderr", said := io.StringIO())
            with pytest.raises(SystemExit) as ended:
                app(["predict", "-"])
        os.close(ours)
        assert ended.value.code == 1
        assert "Standard input is a terminal. Send an image into it" in said.getvalue()


class TestFolders:
    def test_what_is_left_out_is_said(self, photos):
        for name in ("notes.txt", "b.mov", "c.MOV", ".DS_Store", "README"):
            (photos / name).write_text("x")
        (photos / "deep" / "er").mkdir(parents=True)
        (photos / "deep" / "er" / "x.JPEG").write_bytes(PHOTO)
        (photos / "deep" / "round").symlink_to("..")
        (photos / ".thumbs").mkdir()
        (photos / ".thumbs" / "00.jpg").write_bytes(PHOTO)
        (photos / "gone.jpg").symlink_to("nowhere.jpg")
        (photos / "circle.jpg").symlink_to("circle.jpg")
        (photos / "good-link.jpg").symlink_to("00.jpg")
        os.mkfifo(photos / "pipe.jpg")
        code, out, err = condconv("predict", photos, "--json")
        assert code == 1
        found = [entry["filename"].removeprefix(f"{photos}/") for entry in json.loads(out)["predictions"]]
        assert found == [*(f"{number:02}.jpg" for number in range(12)), "deep/er/x.JPEG", "good-link.jpg"]
        assert err == (
            f"{photos}: 14 images. Left out: 4 files that have no image's suffix (.mov 2, .txt 1, no suffix 1): "
            "README, b.mov, c.MOV and 1 more; 1 hidden file: .DS_Store; 1 hidden folder: .thumbs; 1 link to a folder: "
            "deep/round; 2 links that lead nowhere: circle.jpg, gone.jpg; 1 pipe, socket or device: pipe.jpg.\n"
        )

    @pytest.mark.parametrize(
        ("argument", "says"),
        [
            ("", "An image's name is empty. Is a variable of your shell unset?"),
            ("empty", "empty: this folder is empty."),
            (
                "other",
                "other: no image is in this folder. Left out: 1 file that has no image's suffix (.txt): a.txt.",
            ),
            ("absent.jpg", "absent.jpg: there is no such file or folder."),
            ("dead.jpg", "dead.jpg: this link leads to nowhere, which is not there."),
            ("*.gif", "*.gif: no file matches this pattern, and none has this name."),
            ("oth*", "oth*: this pattern matches folders only, such as other. Give the folder, or add /* to "),
            ("https://a.b/c.jpg?d=*", "URL, and nothing is fetched from the network. Download it first: curl -Lo "),
            ("HTTP://a.b/c.jpg", "this is a URL"),
            ("s3://bucket/c.jpg", "this is a URL, and nothing is fetched from the network. Download it first."),
            ("file:///c.jpg", "file:///c.jpg: give the file's path, without file://."),
            ("data:image/png;base64,AAAA", "this is a URL that holds an image."),
        ],
    )
    def test_no_image(self, argument, says, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "a.txt").write_text("x")
        (tmp_path / "dead.jpg").symlink_to("nowhere")
        code, out, err = condconv("predict", argument)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert says in err
        assert len(err.splitlines()) == 1

    def test_a_folder_that_cannot_be_read(self, photos):
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        (photos / "closed").mkdir(mode=0)
        assert "1 folder that can't be read: closed" in condconv("predict", photos)[2]

    def test_an_endless_file_is_too_large(self, monkeypatch):
        monkeypatch.setenv("CONDCONV_MAX_BODY_BYTES", "1024")
        code, _, err = condconv("predict", "/dev/zero")
        assert code == 1
        assert "/dev/zero: The file has more than 1024 bytes, the most allowed." in err


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "photos"),
        ("predict", "photos", "--json"),
        ("routing", "photos", "--json-lines"),
        ("models", "list"),
        ("models", "show", "fake"),
        ("models", "catalogue"),
        ("keys", "new", "--name", "ci"),
        ("--version",),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("photos")
def test_nobody_reads_what_is_printed(command, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patched, open(writing, "w") as pipe:
        patched.setattr(sys, "stdout", pipe)
        patched.setattr(sys, "stderr", said := io.StringIO())
        with pytest.raises(SystemExit) as ended:
            app(list(command))
    with output.out.capture():  # the line that nobody read is not for the next test
        pass
    assert ended.value.code == 141
    assert "Broken pipe" not in said.getvalue()
    assert "error" not in said.getvalue()


class TestFeatures:
    def test_what_is_printed(self, photos):
        code, out, err = condconv("features", photos / "00.jpg", photos / "02.jpg", photos / "03.jpg")
        assert code == 1
        assert [line.split("  ")[0] for line in out.splitlines()] == [str(photos / "00.jpg"), str(photos / "03.jpg")]
        (entry,) = json.loads(condconv("features", photos / "00.jpg", "--json")[1])["predictions"]
        length = np.linalg.norm(entry["features"])
        assert out.splitlines()[0].endswith(f"  {PATCH_FEATURES} features, as a vector of length {length:.3g}")
        assert f"{photos / '02.jpg'}: " in err

    def test_json_is_the_http_answers(self, photos):
        code, out, _ = condconv("features", photos / "00.jpg", photos / "02.jpg", "--json", "--logits")
        good, bad = json.loads(out)["predictions"]
        assert code == 1
        assert good.keys() == {"id", "filename", "features", "logits", "timings_ms", "batch_size"}
        assert (len(good["features"]), len(good["logits"])) == (PATCH_FEATURES, 16)
        assert bad["error"]["slug"] == "unsupported_image"
        _, out, _ = condconv("features", photos / "00.jpg", "--json-lines")
        line = json.loads(out)
        assert line["model"] == {"name": "fake", "version": "3"}
        assert line["features"] == good["features"]
        assert "logits" not in line

    def test_files(self, photos, tmp_path):
        code, out, err = condconv(
            "features", photos, "--data", tmp_path / "f.npz", "--data", tmp_path / "f.csv", "--json-lines"
        )
        assert code == 1
        lines = [json.loads(line) for line in out.splitlines()]
        with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
            assert arrays["features"].shape == (12, PATCH_FEATURES)
            assert np.isnan(arrays["features"]).all(axis=1).tolist() == [number == 2 for number in range(12)]
            np.testing.assert_array_equal(arrays["features"][0], np.array(lines[0]["features"], np.float32))
            assert arrays["filenames"].tolist() == [str(photos / f"{number:02}.jpg") for number in range(12)]
            assert "logits" not in arrays
            made_by = json.loads(str(arrays["made_by"]))
        assert (made_by["model"], made_by["version"]) == ("fake", "3")
        table = (tmp_path / "f.csv").read_text().splitlines()
        assert table[0] == "# model: fake"
        assert [line.partition(",")[0] for line in table if line[0].isdigit()] == [str(n) for n in range(12)]
        assert err.splitlines()[-2:] == [f"wrote {tmp_path / 'f.npz'}", f"wrote {tmp_path / 'f.csv'}"]

    def test_files_that_can_not_be_written(self, photos, tmp_path):
        code, out, err = condconv("features", photos, "--data", tmp_path / "f.json")
        assert (code, out) == (1, "")
        assert ".csv, .npz" in err
        code, _, err = condconv("features", photos, "--data", tmp_path / "none" / "f.npz")
        assert (code, "none" in err) == (1, True)

    def test_nothing_is_written_of_nothing(self, photos, tmp_path):
        code, _, err = condconv("features", photos / "02.jpg", "--data", tmp_path / "f.npz")
        assert code == 1
        assert "wrote" not in err
        assert not (tmp_path / "f.npz").exists()

    @pytest.mark.usefixtures("_interrupted_at_five")
    def test_what_is_there_after_ctrl_c_is_written(self, photos, tmp_path):
        code, out, _ = condconv("features", photos, "--data", tmp_path / "f.npz")
        assert code == 130
        with np.load(tmp_path / "f.npz") as arrays:
            assert len(arrays["features"]) == len(out.splitlines()) + 1
            assert "# interrupted" in json.loads(str(arrays["made_by"]))["command"]


class TestThreshold:
    def test_classes_below_it_are_left_out(self, photos):
        everything = json.loads(condconv("predict", photos / "00.jpg", "--json-lines")[1])["classes"]
        between = (everything[0]["probability"] + everything[1]["probability"]) / 2
        _, out, _ = condconv("predict", photos / "00.jpg", "--json-lines", "--threshold", between)
        assert json.loads(out)["classes"] == everything[:1]

    def test_no_class_reaches_it(self, photos, monkeypatch):
        def undecided(*given, **options):
            model = load_fake(*given, **options)

            def compute(rows, stream):
                return {**model.engine(rows, stream), "logits": np.zeros((len(rows), 16), np.float32)}

            return replace(model, engine=FunctionEngine(compute))

        monkeypatch.setattr(bootstrap, "load_model", undecided)
        code, out, _ = condconv("predict", photos / "00.jpg", "--threshold", 0.1)
        assert (code, out) == (0, f"{photos / '00.jpg'}\n  no class reaches the threshold\n")

    @pytest.mark.parametrize("threshold", ["-0.1", "1.1", "half", "nan"])
    def test_impossible(self, photos, threshold):
        assert condconv("predict", photos / "00.jpg", f"--threshold={threshold}")[0] in (1, 2)
