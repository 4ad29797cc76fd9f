"""Says what a file is that can't be imported, and what to do instead."""

from __future__ import annotations

import zipfile
from pathlib import Path

_AGAIN = "Save the weights of the PyTorch network that it was made from"
_SAVE_STATE = 'torch.save(model.state_dict(), "weights.pth")'
_HEAD = 512

_BY_SUFFIX = {
    ".onnx": f"an ONNX graph, whose weights have lost their names. {_AGAIN}: {_SAVE_STATE}.",
    ".tflite": "a TensorFlow Lite model, whose weights are folded and mostly quantised. Import the TensorFlow "
    "checkpoint or the PyTorch weights that it was made from.",
    ".pb": "a frozen TensorFlow graph, without variables. Import the checkpoint that it was frozen from (.index and "
    ".data files).",
    ".msgpack": "a Flax file, whose layers have other names and layouts. Import the network's PyTorch or safetensors "
    "weights; publishers mostly give both.",
    ".npy": "a NumPy array without a name. Import an .npz file, which names its arrays.",
    ".pkl": "a Python pickle. It can run code, so it is never opened. Load it yourself if you trust it, and save its "
    f"weights: {_SAVE_STATE}.",
    ".pt2": f"an exported PyTorch program. {_AGAIN}: {_SAVE_STATE}.",
    ".mlmodel": f"a Core ML model. {_AGAIN}: {_SAVE_STATE}.",
    ".engine": f"a TensorRT engine, made for one GPU. {_AGAIN}: {_SAVE_STATE}.",
    ".gguf": "a GGUF file, which is for language models. Import the network's PyTorch or safetensors weights.",
    ".xml": f"an OpenVINO model. {_AGAIN}: {_SAVE_STATE}.",
    ".zip": "a zip archive. Unpack it, and import what is in it.",
    ".json": "a text file. Import the weights that lie beside it; their config.json is read with them.",
}
_ALIASES = {
    ".pbtxt": ".pb",
    ".lite": ".tflite",
    ".ort": ".onnx",
    ".pickle": ".pkl",
    ".joblib": ".pkl",
    ".mlpackage": ".mlmodel",
    ".trt": ".engine",
    ".plan": ".engine",
    ".yaml": ".json",
}


def unreadable_kind(source: Path) -> str | None:
    """What a source is, if it is of a kind that can't be imported, and what to do; None if it may be readable.

    Args:
        source: a file or directory. The content decides if it is telling, else the name does.
    """
    if source.is_dir():
        return _directory(source)
    if not source.is_file():
        return None
    try:
        with source.open("rb") as handle:
            head = handle.read(_HEAD)
    except OSError:  # whoever reads it says why it can't be
        return None
    suffix = source.suffix.lower()
    if source.name.endswith(".safetensors.index.json"):
        return (
            "the index of weights that lie in several files. Load them with PyTorch, and save them as one .safetensors "
            "file."
        )
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself. Fetch that with `git lfs pull`."
    if head.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps that of an error or a login. Download the file itself."
    if head[4:8] == b"TFL3":
        return _BY_SUFFIX[".tflite"]
    if head.startswith(b"PK") and suffix not in (".keras", ".zip", ".npz") and _is_torchscript(source):
        return f"a TorchScript program. Save its weights: torch.save(torch.jit.load({source.name!r}).state_dict(), " + (
            '"weights.pth").'
        )
    if source.name in ("saved_model.pb", "saved_model.pbtxt"):
        return "the graph of a SavedModel. Name its folder, which may hold variables, too."
    return _BY_SUFFIX.get(_ALIASES.get(suffix, suffix))


def _directory(directory: Path) -> str | None:
    if directory.suffix.lower() == ".mlpackage":
        return _BY_SUFFIX[".mlmodel"]
    saved_model = any((directory / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))
    if saved_model and not (directory / "variables" / "variables.index").is_file():
        return "a SavedModel without variables: a frozen graph. Import the checkpoint that it was made from."
    return None


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
