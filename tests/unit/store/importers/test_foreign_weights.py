"""Files that can't be imported are called by their names, and something else is proposed."""

import zipfile

import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers import read_source

pytestmark = pytest.mark.tensorflow

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    ("name", "data", "kind", "instead"),
    [
        ("w.onnx", b"\x08\x07", "an ONNX graph", "model.state_dict()"),
        ("w.tflite", b"", "a TensorFlow Lite model", "TensorFlow checkpoint or the PyTorch weights"),
        ("w.bin", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", "TensorFlow checkpoint or the PyTorch weights"),
        ("frozen.pb", b"\x0a", "a frozen TensorFlow graph", "the checkpoint that it was frozen from"),
        ("graph.pbtxt", b"node {", "a frozen TensorFlow graph", "the checkpoint that it was frozen from"),
        ("saved_model.pb", b"\x08", "the graph of a SavedModel", "Name its folder"),
        ("flax_model.msgpack", b"\x81", "a Flax file", "safetensors"),
        ("w.npy", b"\x93NUMPY", "a NumPy array without a name", "Import an .npz file"),
        ("w.pkl", b"\x80\x04", "a Python pickle", "never opened"),
        ("w.pt2", b"PK\x03\x04", "an exported PyTorch program", "model.state_dict()"),
        ("w.ONNX", b"", "an ONNX graph", "model.state_dict()"),
        ("model.safetensors.index.json", b"{}", "the index of weights", "one .safetensors file"),
        ("config.json", b"{}", "a text file", "the weights that lie beside it"),
        ("w.safetensors", POINTER, "a Git LFS pointer", "git lfs pull"),
        ("w.pth", POINTER, "a Git LFS pointer", "git lfs pull"),
        ("w.pth", b"\n<!DOCTYPE html><title>Sign in", "a web page", "Download the file itself"),
        ("w.plan", b"ftrt", "a TensorRT engine", "model.state_dict()"),
    ],
)
def test_what_it_is_and_what_to_do(name, data, kind, instead, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImportFailed) as caught:
        read_source(tmp_path / name)
    assert str(caught.value).startswith(f"{name} is {kind}")
    assert instead in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["traced.pt", "traced.pth", "traced.ckpt"])
def test_torchscript(name, tmp_path):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in ("traced/data.pkl", "traced/constants.pkl", "traced/code/__torch__.py"):
            archive.writestr(member, b"")
    with pytest.raises(ImportFailed, match=r"is a TorchScript program\. .*torch\.jit\.load\('traced"):
        read_source(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["saved_model.pb"], "is a SavedModel without variables"),
        (["flax_model.msgpack", "config.json"], "checkpoint (*.index). It holds a Flax file"),
        (["model.onnx"], "checkpoint (*.index). It holds an ONNX graph"),
        (["a.safetensors", "b.safetensors"], "holds 2 files of weights; name one, such as a.safetensors"),
        (["readme"], "no TensorFlow checkpoint (*.index)."),
    ],
)
def test_folders(files, says, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImportFailed) as caught:
        read_source(tmp_path)
    assert says in str(caught.value)
