import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from condconv_serve import __version__, bootstrap, serve
from condconv_serve.cli import app
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import build_network, get_architecture
from condconv_serve.offline import profile, verify
from condconv_serve.settings import Settings
from condconv_serve.store import write_bundle
from tests.contract.fake_server import load_fake
from tests.contract.fakes import FunctionEngine
from tests.e2e.tiny_models import write_fake, write_tiny
from tests.pictures import jpeg, photo
from tests.unit.store.samples import DEFAULT, STORE, default_model, new_bundle, replace_file, rewrite

pytestmark = pytest.mark.tensorflow

MODEL = "efficientnet-lite0-condconv-4e"
LONG = "a-model-with-a-rather-long-name-to-be-shown"
BLOCKS = [f"block_{i}" for i in range(8, 16)]
run = CliRunner().invoke


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(STORE))
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "2")


@pytest.fixture
def _loaded_once(monkeypatch):
    """All commands share one engine; one test in a process of its own loads for itself."""
    monkeypatch.setattr(bootstrap, "load_model", lambda bundle, plan, *, metrics=None: default_model())


@pytest.fixture
def _nothing_loaded(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a model was loaded, though the command could have failed before")

    for module in (bootstrap, profile, verify):
        monkeypatch.setattr(module, "load_model", fail)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A directory with photos, one of them in a folder, and a file that is none."""
    directory = tmp_path_factory.mktemp("photos")
    (directory / "more").mkdir()
    for place, name in (("coffee.jpg", "coffee"), ("cat.JPEG", "cat"), ("more/rocket.jpg", "rocket")):
        (directory / place).write_bytes(jpeg(photo(name, (300, 200))))
    (directory / "notes.txt").write_text("not an image")
    return directory


def condconv(*arguments):
    """Run the command here; returns exit code, standard output, standard error."""
    result = run(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def in_own_process(*command, **environment):
    """Run Python in a process of its own, with the environment that a user has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONDCONV_", "TF_"))}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=kept | environment, timeout=120
    )


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


def test_nothing_but_computing_needs_tensorflow():
    result = in_own_process(
        "-c",
        "import sys, condconv_serve.fronts.native, condconv_serve.bootstrap, condconv_serve.cli\n"
        "import condconv_serve.offline.classify\n"
        "print([name for name in ('tensorflow', 'keras', 'openvino', 'matplotlib') if name in sys.modules])",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


def test_a_wrong_setting_in_a_process_of_its_own():
    result = in_own_process("-m", "condconv_serve", "models", "list", CONDCONV_PORT="http", CONDCONV_STREAMS="0")
    assert (result.returncode, result.stdout) == (2, "")
    port, *streams = result.stderr.splitlines()
    assert port.startswith("error: CONDCONV_PORT: ")
    assert port.endswith(", not 'http'")
    assert all(line.startswith("error: CONDCONV_STREAMS: ") for line in streams)
    assert streams


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
        model = default_model()
        labels = tuple(replace(label, label=f"{label.label} {'x' * 300}\x1b[2J") for label in model.info.labels)
        named = replace(model, info=replace(model.info, labels=labels))
        monkeypatch.setattr(bootstrap, "load_model", lambda *_, **__: named)
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


@pytest.mark.usefixtures("_nothing_loaded")
class TestRefusals:
    @pytest.mark.parametrize("command", ["predict", "routing"])
    @pytest.mark.parametrize(
        ("argument", "says"),
        [
            ("absent.jpg", "there is no such file or folder"),
            ("*.gif", "no file matches this pattern, and none has this name"),
            ("[x].jpg", "no file matches this pattern, and none has this name"),
        ],
    )
    def test_no_such_file(self, command, argument, says, photos):
        code, out, err = condconv(command, photos / "coffee.jpg", photos / argument)
        assert (code, out) == (1, "")
        assert err == f"error: {photos / argument}: {says}.\n"

    @pytest.mark.parametrize("top_k", ["0", "-1", "five"])
    def test_impossible_top_k(self, top_k, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", "--top-k", top_k)
        assert (code, out) == (2, "")
        assert "--top-k" in err

    def test_no_image(self):
        code, _, err = condconv("predict")
        assert code == 2
        assert "IMAGE" in err

    def test_an_unknown_model(self, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", "--model", "resnet")
        assert (code, out) == (1, "")
        assert err == f"error: There is no model 'resnet' in the store; there are: {MODEL}.\n"

    @pytest.mark.parametrize(
        ("plot", "says"), [("plot.txt", "a plot is written as"), ("no/plot.png", "there is no directory")]
    )
    def test_impossible_plots(self, plot, says, photos, tmp_path):
        code, out, err = condconv("routing", photos / "coffee.jpg", "--plot", tmp_path / plot)
        assert (code, out) == (1, "")
        assert says in err

    def test_an_impossible_device(self, photos, monkeypatch):
        monkeypatch.setenv("CONDCONV_DEVICE", "tpu")
        code, out, err = condconv("predict", photos / "coffee.jpg")
        assert (code, out) == (1, "")
        assert "There is no device 'tpu' here" in err

    def test_a_default_model_that_is_not_there(self, photos, monkeypatch):
        monkeypatch.setenv("CONDCONV_DEFAULT_MODEL", "b0[/x]")
        code, _, err = condconv("predict", photos / "coffee.jpg")
        assert code == 1
        assert err.startswith("error: The default model 'b0[/x]' is not in the store")

    @pytest.mark.parametrize("arguments", [["predict", "coffee.jpg"], ["routing", "coffee.jpg"], ["models", "verify"]])
    def test_an_empty_store(self, arguments, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(photos)
        code, out, err = condconv(*arguments, "--model-store", tmp_path)
        assert (code, out) == (1, "")
        assert "no bundle" in err

    @pytest.mark.parametrize("arguments", [["predict", "coffee.jpg"], ["models", "list"], ["models", "verify"]])
    def test_no_store(self, arguments, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(photos)
        code, out, err = condconv(*arguments, "--model-store", tmp_path / "absent")
        assert (code, out) == (1, "")
        assert err == f"error: The model store {tmp_path / 'absent'} is no directory.\n"


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


class TestModels:
    @pytest.fixture
    def store(self, tmp_path):
        """Two versions of a model that fits no network."""
        architecture = {"name": MODEL, "num_classes": 3, "depth_coefficient": 0.3}
        for version in ("2", "10"):
            write_bundle(tmp_path, new_bundle(version=version, name=LONG, architecture=architecture))
        return tmp_path

    def test_list(self, store):
        rewrite(store / LONG / "10", schema_version=9)
        code, out, err = condconv("models", "list", "--model-store", store)
        assert (code, err) == (0, f"Default model: {LONG}.\n")
        header, good, bad = (line.split() for line in out.splitlines())
        assert header == ["model", "version", "architecture", "classes", "size", "licence"]
        assert good == [LONG, "2", MODEL, "3", "0.0", "MB", "MIT"]
        assert bad[:2] == [LONG, "10"]
        assert "has schema version 9, newer than 1, the newest one known here." in " ".join(bad)

    def test_nothing_in_a_bundle_steers_the_terminal(self, tmp_path):
        given = new_bundle(name=LONG, licence="\x1b[2JMIT", model_card="# Card\n\n\x1b[31mred\x9b2J [x](y)\n")
        write_bundle(tmp_path, given)
        for command in (("list",), ("show", LONG), ("show", LONG, "--json")):
            code, out, _ = condconv("models", *command, "--model-store", tmp_path)
            assert code == 0
            assert "2JMIT" in out
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)

    def test_list_of_an_empty_store(self, tmp_path):
        code, out, _ = condconv("models", "list", "--model-store", tmp_path)
        assert code == 0
        assert len(out.splitlines()) == 1

    def test_show(self):
        code, out, err = condconv("models", "show", MODEL)
        assert (code, err) == (0, "")
        assert '"licence": "Apache-2.0"' in out
        assert len(out.split("}")[-1]) > 1000, "the model card"

    @pytest.mark.parametrize(("name", "version"), [("", "10"), ("/2", "2")])
    def test_show_json(self, name, version, store):
        code, out, _ = condconv("models", "show", LONG + name, "--json", "--model-store", store)
        assert code == 0
        document = json.loads(out)
        assert (document["name"], document["version"]) == (LONG, version)
        assert document["model_card"] == "# Small\n\nNot for use.\n"

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("pear", "error: There is no model 'pear' in the store"),
            (f"{MODEL}/7", f"error: Model {MODEL} has no version '7'; there are: 1."),
            ("../model_store", "error: There is no model '..' in the store"),
            (f"{MODEL}/1/", f"error: '{MODEL}/1/' is no model. Write NAME, NAME/VERSION or NAME/ALIAS; there are: "),
        ],
    )
    @pytest.mark.parametrize("command", ["show", "verify"])
    def test_unknown_names(self, command, name, says):
        code, out, err = condconv("models", command, name)
        assert (code, out) == (1, "")
        assert err.startswith(says)

    def test_verify(self, store):
        """One good bundle, one with a flipped byte, and two with the intact weights of no network."""
        write_tiny(store, "tiny", 1)
        with (write_tiny(store, "tiny", 2) / "weights.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        code, out, err = condconv("models", "verify", "--model-store", store)
        assert (code, err) == (1, "")
        lines = out.splitlines()
        assert [line.split()[0] for line in lines] == ["bad", "bad", "good", "bad"]
        assert lines[0].startswith(f"bad  {LONG}/2: the weights don't fit")
        assert lines[2] == "good tiny/1"
        assert lines[3].startswith("bad  tiny/2: weights.safetensors has SHA-256 ")

    def test_verify_the_bundle_that_is_shipped(self, monkeypatch):
        model = default_model()
        engine = FunctionEngine(model.engine)  # closed in place of the one that all tests share
        monkeypatch.setattr(verify, "load_model", lambda bundle, plan: replace(model, engine=engine))
        assert condconv("models", "verify", MODEL) == (0, f"good {MODEL}/1\n", "")
        assert engine.closed.is_set()

    def test_verify_a_damaged_router(self, tmp_path):
        shutil.copytree(DEFAULT, tmp_path / MODEL / "1")
        tensors = load_file(DEFAULT / "weights.safetensors")
        del tensors["block_9_routing/kernel"]
        tensors["stem/kernel"] = tensors["stem/kernel"][:2]
        replace_file(tmp_path / MODEL / "1", "weights.safetensors", save(tensors))
        code, out, _ = condconv("models", "verify", f"{MODEL}/1", "--model-store", tmp_path)
        assert code == 1
        assert "block_9_routing/kernel is missing; stem/kernel is [2, 3, 3, 32] instead of [3, 3, 3, 32]." in out

    def test_import_of_what_is_not_there(self, tmp_path):
        arguments = ["--architecture", MODEL, "--name", "new", "--model-store", tmp_path]
        code, out, err = condconv("models", "import", tmp_path / "absent.safetensors", *arguments)
        assert (code, out) == (1, "")
        assert (
            err
            == "error: absent.safetensors can't be read: there is no such file, directory or TensorFlow checkpoint.\n"
        )
        assert list(tmp_path.iterdir()) == []

    def test_import_with_experts_and_channels_of_ones_own(self, tmp_path):
        own = {"num_experts": 3, "width_coefficient": 0.1, "depth_coefficient": 0.3}
        network = build_network(get_architecture(MODEL, **own, num_classes=2))
        network.save_weights(tmp_path / "own.weights.h5")
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        store = ["--model-store", tmp_path / "store"]
        arguments = ["--architecture", MODEL, "--name", "own", "--labels", tmp_path / "names.txt", *store]
        arguments += ["--experts", "3", "--override", "width_coefficient=0.1", "--override", "image_size=64"]
        arguments += ["--override", "depth_coefficient=0.3"]
        code, out, err = condconv(
            "models", "import", tmp_path / "own.weights.h5", *arguments, "--mean", "1,2,3", "--std", "9"
        )
        assert (code, err) == (0, "")
        assert [" ".join(line.split()) for line in out.splitlines()] == [
            f"wrote {tmp_path / 'store' / 'own' / '1'}",
            "weights unmarked the only ones; perhaps averages",
            "transform official assumed: the official evaluation",
            "image size 64 an option",
            "crop 0.667 of the short side assumed: 64 of 96 pixels",
            "interpolation bicubic the official evaluation",
            "mean 1, 2, 3 an option",
            "std 9, 9, 9 an option",
            "labels 2 classes names.txt",
            "Assumed values may be wrong, and then answers are. If you know better, give --transform, --crop.",
        ]
        code, out, _ = condconv("models", "show", "own", "--json", *store)
        shown = json.loads(out)
        assert shown["architecture"] == {"name": MODEL, "image_size": 64, "num_classes": 2} | own
        assert (shown["preprocessing"]["mean"], shown["preprocessing"]["std"]) == ([1, 2, 3], [9, 9, 9])
        assert condconv("models", "verify", "own", *store)[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--override", "width"], "'width' is not of the form NAME=NUMBER"),
            (["--override", "width=wide"], "'width=wide' is not of the form NAME=NUMBER"),
            (["--mean", "1,2"], "'1,2' must be one number or three"),
            (["--std", "one"], "'one' must be one number or three"),
            (["--upcycle-noise", "0.1"], "only upcycled experts can differ: add --upcycle"),
            (["--crop", "0"], "should be greater than or equal to 0.01"),
            (["--interpolation", "magic"], "'magic' is not one of"),
            (["--experts", "0"], "should be greater than or equal to 1"),
        ],
    )
    def test_import_with_impossible_options(self, arguments, says, tmp_path):
        given = ["--architecture", MODEL, "--name", "new", "--model-store", tmp_path]
        code, out, err = condconv("models", "import", tmp_path / "w.safetensors", *given, *arguments)
        assert (code, out) == (2, "")
        assert says in " ".join(err.replace("│", "").split())

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--override", "colour=3"], "Unknown architecture parameter colour; known are num_classes, "),
            (["--override", "image_size=7"], "image_size must be a whole number from 32 to 2048, not 7"),
        ],
    )
    def test_import_with_impossible_overrides(self, arguments, says, tmp_path):
        given = ["--architecture", MODEL, "--name", "new", "--model-store", tmp_path]
        code, _, err = condconv("models", "import", tmp_path / "w.safetensors", *given, *arguments)
        assert code == 1
        assert says in err


class TestServe:
    @pytest.fixture
    def served(self, monkeypatch):
        """The settings that a server would have got."""
        calls = []
        monkeypatch.setattr(serve, "serve", calls.append)
        yield calls
        logging.getLogger("condconv_serve").setLevel(logging.NOTSET)

    def test_options_come_before_the_environment(self, served, tmp_path, monkeypatch):
        monkeypatch.setenv("CONDCONV_PORT", "9000")
        monkeypatch.setenv("CONDCONV_HOST", "::1")
        monkeypatch.setenv("CONDCONV_LOG_LEVEL", "warning")
        assert condconv("serve", "--port", 9001, "--model-store", tmp_path)[0] == 0
        (settings,) = served
        assert (settings.port, settings.host, settings.model_store) == (9001, "::1", tmp_path)
        assert logging.getLogger("condconv_serve").level == logging.WARNING

    @pytest.mark.parametrize("port", ["65536", "-1", "http"])
    def test_impossible_ports(self, port, served):
        code, _, err = condconv("serve", "--port", port)
        assert code == 2
        assert "--port" in err
        assert served == []

    @pytest.mark.usefixtures("served")
    def test_what_cannot_be_served(self, monkeypatch):
        def fail(_):
            raise ConfigurationError("Can't listen on 127.0.0.1:80: Permission denied.")

        monkeypatch.setattr(serve, "serve", fail)
        assert condconv("serve") == (1, "", "error: Can't listen on 127.0.0.1:80: Permission denied.\n")


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("serve", "condconv serve --port 9000"),
        ("predict", "condconv predict photo.jpg 'holiday/*.png' --top-k 3"),
        ("routing", "condconv routing photo.jpg --plot routing.png"),
        ("models show", f"condconv models show {MODEL}"),
        ("models verify", "condconv models verify"),
        ("models import", "condconv models import efficientnet-condconv-b0-8e.tar.gz"),
        ("models pull", "condconv models pull efficientnet-condconv-b0-8e"),
        ("models catalogue", "condconv models catalogue --json"),
    ],
)
def test_help_shows_an_example(command, example):
    for option in ("--help", "-h"):
        code, out, err = condconv(*command.split(), option)
        assert (code, err) == (0, "")
        assert f"Example: {example}" in " ".join(out.split())


def commands(group, *before):
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *before, name)
    yield before


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_help(command):
    code, out, err = condconv(*command, "--help")
    assert (code, err) == (0, "")
    assert out.split()[0] == "Usage:"


@pytest.mark.parametrize("arguments", [[], ["models"]])
def test_without_a_command_there_is_help(arguments):
    code, out, err = condconv(*arguments)
    assert code == 2
    assert "Usage: " in out + err
    assert "list" in out + err or "predict" in out + err


def test_version():
    assert condconv("--version") == (0, f"condconv-serve {__version__}\n", "")


def test_wrong_settings_name_their_variable(monkeypatch):
    monkeypatch.setenv("CONDCONV_MAX_QUEUE_ROWS", "[bold]many[/x]")
    code, out, err = condconv("models", "list")
    assert (code, out) == (2, "")
    assert err.startswith("error: CONDCONV_MAX_QUEUE_ROWS: ")
    assert err.endswith(", not '[bold]many[/x]'\n")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("STREAMS", "none", "Input should be a valid integer, unable to parse string as an integer or 'auto'"),
        ("STREAMS", "0", "Input should be greater than or equal to 1 or 'auto'"),
        ("MAX_BATCH_SIZE", "5000", "Input should be less than or equal to 1024 or 'auto'"),
    ],
)
def test_a_setting_of_two_kinds_is_refused_in_one_line(name, value, wanted, monkeypatch):
    monkeypatch.setenv(f"CONDCONV_{name}", value)
    assert condconv("models", "list") == (2, "", f"error: CONDCONV_{name}: {wanted}, not {value!r}\n")


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


@pytest.mark.usefixtures("_loaded_once")
def test_predict_answers_the_good_and_names_the_bad(tmp_path):
    (tmp_path / "coffee.jpg").write_bytes(jpeg(photo("coffee")))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    result = run(app, ["predict", str(tmp_path), "--top-k", "2", "--json"])
    assert result.exit_code == 1
    bad, good = json.loads(result.stdout)["predictions"]
    assert bad["error"]["slug"] == "unsupported_image"
    assert good["classes"][0]["label"] == "espresso"
    assert len(good["classes"]) == 2


def test_the_bundle_that_is_shipped_is_listed_and_shown():
    assert MODEL in condconv("models", "list")[1]
    assert json.loads(condconv("models", "show", MODEL, "--json")[1])["num_classes"] == 1000
