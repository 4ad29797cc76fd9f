"""`condconv models`: what is in the store, and importing into it."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from safetensors.numpy import load_file, save

from condconv_serve.nn import ARCHITECTURES, build_network, get_architecture
from condconv_serve.offline import architectures, verify
from condconv_serve.store import write_bundle
from tests.contract.fakes import FunctionEngine
from tests.e2e.tiny_models import write_tiny
from tests.unit.cli.commands import MODEL, condconv
from tests.unit.store.samples import DEFAULT, default_model, new_bundle, replace_file, rewrite

pytestmark = pytest.mark.tensorflow

LONG = "a-model-with-a-rather-long-name-to-be-shown"


@pytest.fixture(autouse=True)
def _environment(shipped_store):
    pass


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

    def test_architectures(self, monkeypatch):
        few = {name: ARCHITECTURES[name] for name in ("efficientnet-b0", "condconv-mobilenet-v1-8e")}
        monkeypatch.setattr(architectures, "ARCHITECTURES", few)
        code, out, _ = condconv("models", "architectures")
        assert code == 0
        assert [line.split() for line in out.splitlines()] == [
            ["architecture", "experts", "pixels", "parameters", "multiply-adds"],
            ["efficientnet-b0", "-", "224", "5.3M", "391M"],
            ["condconv-mobilenet-v1-8e", "8", "224", "32.8M", "602M"],
        ]
        found = json.loads(condconv("models", "architectures", "--json")[1])
        assert found[1] == {
            "name": "condconv-mobilenet-v1-8e",
            "family": "mobilenet_v1",
            "experts": 8,
            "image_size": 224,
            "parameters": 32_826_824,
            "multiply_adds": 601_866_072,
        }

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
        own["condconv"] = ["block_1", "head", "classifier"]
        network = build_network(get_architecture(MODEL, **own, num_classes=2))
        network.save_weights(tmp_path / "own.weights.h5")
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        store = ["--model-store", tmp_path / "store"]
        arguments = ["--architecture", MODEL, "--name", "own", "--labels", tmp_path / "names.txt", *store]
        arguments += ["--experts", "3", "--override", "width_coefficient=0.1", "--override", "image_size=64"]
        arguments += ["--override", "depth_coefficient=0.3", "--override", "condconv=classifier,block_1,head"]
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
            (["--override", "width"], "'width' is not of the form NAME=VALUE"),
            (["--override", "=3"], "'=3' is not of the form NAME=VALUE"),
            (["--override", f"extras={'[' * 100_000}"], "is no list in JSON"),
            (["--override", "extras=[[8, 8]"], "'[[8, 8]' is no list in JSON"),
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
            (
                ["--architecture", "ssdlite", "--override", "extras=[[8, 8, 2], [8, 8, 3]]"],
                "extras must have strides of 1 or 2, not 3",
            ),
        ],
    )
    def test_import_with_impossible_overrides(self, arguments, says, tmp_path):
        given = ["--architecture", MODEL, "--name", "new", "--model-store", tmp_path]
        code, _, err = condconv("models", "import", tmp_path / "w.safetensors", *given, *arguments)
        assert code == 1
        assert says in err


def test_the_bundle_that_is_shipped_is_listed_and_shown():
    assert MODEL in condconv("models", "list")[1]
    assert json.loads(condconv("models", "show", MODEL, "--json")[1])["num_classes"] == 1000
