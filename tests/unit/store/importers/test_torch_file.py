"""Pickles of PyTorch: state dicts come out, code does not run."""

import argparse
import collections
import os
import sys
import types

import numpy as np
import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers import read_source
from condconv_serve.store.importers.torch_file import read_torch

pytestmark = pytest.mark.tensorflow

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'condconv-serve[torch]'")
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def save(tmp_path):
    def write(content, **options):
        torch.save(content, tmp_path / "model.pth", **options)
        return tmp_path / "model.pth"

    return write


def state(factor=1.0, prefix=""):
    return collections.OrderedDict(
        {
            f"{prefix}blocks.0.0.conv_dw.weight": torch.from_numpy(WEIGHT * factor),
            f"{prefix}bn1.num_batches_tracked": torch.tensor(7),
        }
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict(zipped, save):
    found = read_torch(save(state(), _use_new_zipfile_serialization=zipped)).copy.weights
    assert found.keys() == {"blocks.0.0.conv_dw.weight", "bn1.num_batches_tracked"}
    np.testing.assert_array_equal(found["blocks.0.0.conv_dw.weight"], WEIGHT)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_inside_a_training_checkpoint(key, prefix, save):
    checkpoint = {"epoch": 3, "arch": "x", "args": argparse.Namespace(lr=0.1), key: state(2, prefix)}
    found = read_torch(save(checkpoint)).copy.weights
    np.testing.assert_array_equal(found["blocks.0.0.conv_dw.weight"], 2 * WEIGHT)


@pytest.mark.parametrize(("raw", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
@pytest.mark.parametrize("use_ema", [True, False])
def test_averaged_weights_are_preferred_or_refused(raw, averaged, use_ema, save):
    file = save({raw: state(1), averaged: state(2)})
    found = read_torch(file, use_ema=use_ema).copy.weights["blocks.0.0.conv_dw.weight"]
    np.testing.assert_array_equal(found, WEIGHT * (2 if use_ema else 1))


def test_nothing_but_averaged_weights(save):
    with pytest.raises(ImportFailed, match=r"averaged weights only \(state_dict_ema\), and these are refused"):
        read_torch(save({"state_dict_ema": state()}), use_ema=False)


class TestLightning:
    """Checkpoints of PyTorch Lightning, with its state beside the weights."""

    @pytest.fixture
    def checkpoint(self):
        return {
            "pytorch-lightning_version": "2.6.6",
            "state_dict": state(1, "net._orig_mod."),
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "/x.ckpt"}},
            "hyper_parameters": {"lr": 1e-3},
        }

    def test_weights_are_read(self, checkpoint, save, tmp_path):
        file = save(checkpoint).rename(tmp_path / "last.ckpt")
        found = read_source(file)
        assert (found.naming, found.kind) == ("timm", "raw")
        np.testing.assert_array_equal(found.tensors["blocks.0.0.conv_dw.weight"], WEIGHT)

    @pytest.mark.parametrize("use_ema", [True, False])
    def test_averages_that_took_the_place_of_the_weights(self, use_ema, checkpoint, save):
        checkpoint |= {"state_dict": state(2, "net."), "current_model_state": state(1, "net."), "averaging_state": {}}
        copy = read_torch(save(checkpoint), use_ema=use_ema).copy
        np.testing.assert_array_equal(copy.weights["blocks.0.0.conv_dw.weight"], WEIGHT * (2 if use_ema else 1))
        assert (copy.kind, copy.has_other) == ("averaged" if use_ema else "raw", True)

    @pytest.mark.parametrize("module", ["lightning_fabric.utilities.data", "lightning.fabric.utilities.data"])
    def test_its_dict_of_arguments(self, module, checkpoint, save, monkeypatch):
        *parents, _ = module.split(".")
        for depth in range(len(parents)):
            name = ".".join(parents[: depth + 1])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        lightning = types.ModuleType(module)
        lightning.AttributeDict = type("AttributeDict", (dict,), {"__module__": module})
        with monkeypatch.context() as installed:
            installed.setitem(sys.modules, module, lightning)
            file = save(checkpoint | {"hyper_parameters": lightning.AttributeDict(lr=1e-3)})
        assert read_torch(file).copy.kind == "raw", "where Lightning isn't installed"


@pytest.mark.parametrize("key", ["ema", "ema_state_dict", "model_ema_state_dict"])
def test_other_names_of_averages(key, save):
    copy = read_torch(
        save({"model_state_dict": state(1), key: state(2, "module.") | {"n_averaged": torch.tensor(3)}})
    ).copy
    np.testing.assert_array_equal(copy.weights["blocks.0.0.conv_dw.weight"], 2 * WEIGHT)
    assert (copy.kind, copy.has_other) == ("averaged", True)


def test_arguments_of_timms_training(save):
    given = argparse.Namespace(model="tf_efficientnet_lite0", mean=[0.5, 0.5, 0.5], interpolation="")
    config = read_torch(save({"arch": "tf_efficientnet_lite0", "state_dict": state(), "args": given})).config
    assert (config.mean, config.std, config.origin) == ((127.5,) * 3, None, "the arguments in model.pth")
    assert read_torch(save(state())).config is None


def test_types(save):
    tensors = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float16)}
    found = read_torch(save(tensors | {"c": torch.nn.Parameter(torch.ones(2))})).copy.weights
    assert [found[name].dtype for name in "abc"] == [np.float32, np.float16, np.float32]


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "beside", "inside"])
def test_code_is_refused_and_not_executed(where, zipped, save, tmp_path):
    evil = Evil(tmp_path / "executed")
    content = {"alone": evil, "beside": {"state_dict": state(), "args": evil}, "inside": {"a.weight": evil}}[where]
    file = save(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ImportFailed) as caught:
        read_torch(file)
    assert not (tmp_path / "executed").exists()
    assert "model.pth holds more than weights (posix.system); code in it is not executed" in str(caught.value)
    assert "save only the network's state_dict()" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to run it after all
    torch.load(file, weights_only=False)
    assert (tmp_path / "executed").exists()  # it would have worked


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds no state dict"),
        ({"state_dict": 3}, "state_dict is a int"),
        ({}, "holds no tensors"),
        ({"a": 1, "b": "text"}, "a, b is no dense tensor"),
    ],
)
def test_what_is_no_state_dict(content, says, save):
    with pytest.raises(ImportFailed, match=says):
        read_torch(save(content))


def test_sparse_tensors(save):
    with pytest.raises(ImportFailed, match="a is no dense tensor"):
        read_torch(save({"a": torch.eye(3).to_sparse()}))


@pytest.mark.parametrize("data", [b"", b"no pickle", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_garbage(data, tmp_path):
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ImportFailed, match=r"^w\.pth "):
        read_torch(tmp_path / "w.pth")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated(share, save, tmp_path):
    file = save({"w": torch.zeros(10_000)})
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ImportFailed, match=r"^model\.pth ") as caught:
        read_torch(file)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImportFailed, match=r"^absent\.pth can't be read: No such file or directory\.$"):
        read_torch(tmp_path / "absent.pth")
