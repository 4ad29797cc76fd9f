"""State dicts in PyTorch's own files (`.pth`, `.pt`, `.bin`), which are pickles: nothing in them is executed.

PyTorch's weights-only loading knows a few harmless classes and refuses all others. It is an optional dependency.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed

SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")
# In timm's order.
_AVERAGED = ("state_dict_ema", "model_ema")
_RAW = ("state_dict", "model")
_PARALLEL = "module."


def read_torch(file: Path, *, use_ema: bool = True) -> dict[str, NDArray[Any]]:
    """Read a state dict, alone or inside a training checkpoint.

    Args:
        file: what `torch.save` has written.
        use_ema: whether averaged weights are preferred where the checkpoint has them.

    Returns:
        Tensors by name, without the prefix of parallel training.

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
        # timm's training script stores its arguments so; as a class it is as harmless as a dict.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # PyTorch's remarks on how it loads tell nobody what to do
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage raises anything
        raise ImportFailed(f"{file.name} {_reason(error)}") from error
    chosen = _choose(loaded, file.name, use_ema=use_ema)
    state = without_prefix({str(name): value for name, value in chosen.items()})
    if odd := [name for name, value in state.items() if not _is_dense(value, torch)]:
        raise ImportFailed(f"{file.name} holds no plain state dict: {', '.join(odd[:8])} is no dense tensor.")
    if not state:
        raise ImportFailed(f"{file.name} holds no tensors.")
    with torch.no_grad():
        # NumPy has no bfloat16.
        return {
            name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in state.items()
        }


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefix that parallel training puts before all names."""
    parallel = all(name.startswith(_PARALLEL) for name in state)
    return {name.removeprefix(_PARALLEL) if parallel else name: value for name, value in state.items()}


def _choose(loaded: Any, name: str, *, use_ema: bool) -> Mapping[Any, Any]:
    if not isinstance(loaded, Mapping):
        raise ImportFailed(f"{name} holds no state dict.")
    averaged = [key for key in _AVERAGED if loaded.get(key) is not None]
    raw = [key for key in _RAW if key in loaded]
    if averaged and not raw and not use_ema:
        raise ImportFailed(f"{name} holds averaged weights only ({', '.join(averaged)}), and these are refused.")
    chosen = [*(averaged if use_ema else ()), *raw]
    state = loaded[chosen[0]] if chosen else loaded
    if not isinstance(state, Mapping):
        raise ImportFailed(f"{name} holds no state dict: {chosen[0] if chosen else 'it'} is a {type(state).__name__}.")
    return state


def _is_dense(value: Any, torch: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _reason(error: Exception) -> str:
    """PyTorch's reasons are a page long and advise to execute the file after all."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]*\w)", text):
        return f"holds more than weights ({found[1]}); code in it is not executed, so it can't be imported."
    if "eights only load failed" in text:
        return "holds more than weights, or is damaged; code in it is not executed, so it can't be imported."
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror}."
    return f"can't be read as a PyTorch file: {text.splitlines()[0] if text else type(error).__name__}"
