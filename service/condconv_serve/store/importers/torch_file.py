"""State dicts in PyTorch's own files (`.pth`, `.pt`, `.bin`, `.ckpt`), which are pickles: nothing in them is executed.

PyTorch's weights-only loading knows a few harmless classes and refuses all others. It is an optional dependency.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.names import Copy, plain_copy
from condconv_serve.store.importers.source_config import SourceConfig, config_from_arguments

SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")
# In timm's order, then as others call them.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema")
_RAW = ("state_dict", "model", "model_state_dict")
# Lightning's weight averaging puts the averages where the weights were, and keeps these here.
_LIGHTNING_RAW = "current_model_state"
_HEADS = (b"PK\x03\x04", b"\x80\x02")
"""How files of PyTorch begin: a zip archive, or a bare pickle."""


_ADVICE = "If you trust it, load it with the program that wrote it, and save only the network's state_dict()."
_HARMLESS: list[Any] = [
    argparse.Namespace,  # timm's training script stores its arguments so
    # Lightning's arguments: a dict, and read as one.
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]


@dataclass(frozen=True, slots=True)
class TorchFile:
    """Tensors (NumPy) by the network's own names, which kind they are, and what the file's arguments say."""

    copy: Copy
    config: SourceConfig | None = None


def is_torch(file: Path) -> bool:
    """Whether a file is one of PyTorch's by its name, or by its content if it is called `.ckpt`."""
    if file.name.endswith(SUFFIXES):
        return True
    if file.suffix != ".ckpt":
        return False
    with file.open("rb") as handle:
        return handle.read(4).startswith(_HEADS)


def read_torch(file: Path, *, use_ema: bool = True) -> TorchFile:
    """Read a state dict, alone or inside a training checkpoint.

    Args:
        file: what `torch.save` has written, perhaps through Lightning.
        use_ema: whether averaged weights are preferred where the checkpoint has them.

    Raises:
        ImportFailed: PyTorch isn't installed, the file is damaged or holds more than data, or there is no state dict.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportFailed(
            f"PyTorch is needed to read {file.name}: pip install 'condconv-serve[torch]'. "
            "A .safetensors file of the same weights needs nothing."
        ) from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # PyTorch's remarks on how it loads tell nobody what to do
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage raises anything
        raise ImportFailed(f"{file.name} {_reason(error)}") from error
    if not isinstance(loaded, Mapping):
        raise ImportFailed(f"{file.name} holds no state dict.")
    chosen = _choose(loaded, file.name, use_ema=use_ema)
    state = chosen.weights
    if odd := [name for name, value in state.items() if not _is_dense(value, torch)]:
        raise ImportFailed(f"{file.name} holds no plain state dict: {', '.join(odd[:8])} is no dense tensor.")
    if not state:
        raise ImportFailed(f"{file.name} holds no tensors.")
    with torch.no_grad():
        # NumPy has no bfloat16.
        arrays = {
            name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in state.items()
        }
    config = config_from_arguments(loaded, origin=f"the arguments in {file.name}")
    return TorchFile(Copy(arrays, chosen.kind, chosen.has_other), config)


def _choose(loaded: Mapping[Any, Any], name: str, *, use_ema: bool) -> Copy:
    averaged = [key for key in _AVERAGED if loaded.get(key) is not None]
    raw = [key for key in _RAW if key in loaded]
    if _LIGHTNING_RAW in loaded:
        averaged, raw = raw, [_LIGHTNING_RAW]
    if averaged and not raw and not use_ema:
        raise ImportFailed(f"{name} holds averaged weights only ({', '.join(averaged)}), and these are refused.")
    chosen = [*(averaged if use_ema else ()), *raw]
    state = loaded[chosen[0]] if chosen else loaded
    if not isinstance(state, Mapping):
        raise ImportFailed(f"{name} holds no state dict: {chosen[0] if chosen else 'it'} is a {type(state).__name__}.")
    if chosen and chosen[0] in averaged:
        copy = plain_copy({str(key): value for key, value in state.items()}, use_ema=True, source=name)
        return Copy(copy.weights, "averaged", has_other=bool(raw))
    copy = plain_copy({str(key): value for key, value in state.items()}, use_ema=use_ema, source=name)
    # A training checkpoint that has no averages holds the weights of its last step.
    kind = "raw" if chosen and copy.kind == "unmarked" else copy.kind
    return Copy(copy.weights, kind, has_other=copy.has_other or bool(averaged))


def _is_dense(value: Any, torch: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _reason(error: Exception) -> str:
    """PyTorch's reasons are a page long and advise to execute the file after all."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]*\w)", text):
        return f"holds more than weights ({found[1]}); code in it is not executed, so it can't be imported. {_ADVICE}"
    if "eights only load failed" in text:
        return f"holds more than weights, or is damaged; code in it is not executed, so it can't be imported. {_ADVICE}"
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror}."
    return f"can't be read as a PyTorch file: {text.splitlines()[0] if text else type(error).__name__}"
