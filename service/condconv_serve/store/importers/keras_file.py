"""Weights in Keras's own files, `.weights.h5`, `.h5` and `.keras`, of networks built here or in Keras Applications.

Only numbers are read. A `.keras` file also says how to rebuild its model, which may be any code; that part is left
alone, and so are links to other files.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.assembly import Translation
from condconv_serve.store.importers.hdf5_trial import try_out
from condconv_serve.store.importers.keras_legacy import is_legacy, read_legacy

SUFFIXES = (".keras", ".h5", ".hdf5")
_WEIGHTS = "model.weights.h5"
# Not part of the network: what training keeps beside it.
_TRAINING_STATE = re.compile(r"(^|/)(optimizer|seed_generator|_?metrics|_?loss_tracker)/")
_ENTRY = re.compile(r"^(?P<layer>.*)/vars/(?P<position>\d+)$")


def read_keras(file: Path, *, max_bytes: int) -> dict[str, NDArray[Any]]:
    """Read all tensors of a `.weights.h5`, `.keras` or `.h5` file.

    Args:
        file: what Keras has written.
        max_bytes: the most that all tensors may have together, unpacked.

    Returns:
        Tensors by the name of their layer, or their place in the file where it names none, and position in the layer:
        `block_8_routing/vars/0`. In Keras 2's layout, by the names of layer and variable: `conv1/kernel`.

    Raises:
        ImportFailed: the file is damaged, too large, or links elsewhere.
    """
    try:
        with tempfile.TemporaryFile() if file.suffix == ".keras" else file.open("rb") as weights:
            if file.suffix == ".keras":
                _unpack(file, weights, max_bytes)
            try_out(weights, max_bytes=max_bytes)
            with h5py.File(weights, "r") as store:
                if is_legacy(store):
                    return read_legacy(store, file.name, max_bytes)
                return _read(store, file.name, max_bytes)
    # What h5py and zipfile raise for damaged files depends on where the damage is.
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ImportFailed(f"{file.name} can't be read as weights of Keras: {error}") from error


def _unpack(file: Path, into: IO[bytes], max_bytes: int) -> None:
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(_WEIGHTS)
        if info.file_size > max_bytes:
            raise ImportFailed(f"{file.name} holds {info.file_size} bytes of weights; {max_bytes} are allowed.")
        with archive.open(info) as weights:  # gives no more than the size that it announces
            shutil.copyfileobj(weights, into, 2**20)
    into.seek(0)


def _read(store: Any, name: str, max_bytes: int) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    total = 0
    for place, dataset in _datasets(store, name):
        total += dataset.nbytes
        if total > max_bytes:
            raise ImportFailed(f"{name} holds more than {max_bytes} bytes of weights; that is the most allowed.")
        match = _ENTRY.match(place)
        if match is None:
            raise ImportFailed(f"{name} is not in the format of Keras 3: {place} is no variable of a layer.")
        layer = dataset.parent.attrs.get("name", match["layer"])
        key = place if _TRAINING_STATE.search(place) else f"{layer}/vars/{match['position']}"
        if key in tensors:
            raise ImportFailed(f"{name} has two layers called {layer}.")
        tensors[key] = np.asarray(dataset)
    return tensors


def _datasets(group: Any, name: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All datasets below a group, by their place. Links are refused: they would read other files of this machine."""
    for key in group:
        link = group.get(key, getlink=True)
        item = group[key] if isinstance(link, h5py.HardLink) else None
        place = f"{prefix}{key}"
        if isinstance(item, h5py.Group):
            yield from _datasets(item, name, f"{place}/")
        elif isinstance(item, h5py.Dataset) and item.external is None and not item.is_virtual:
            yield place, item
        else:
            raise ImportFailed(f"{name} holds {place}, which links to another place; only plain data is read.")


def translate_keras(tensors: Mapping[str, NDArray[Any]], network: keras.Model) -> Translation:
    """Translate what `read_keras` returned.

    Args:
        tensors: by name or place of the layer, and position in it.
        network: built here as the saved one was; tells the order of the variables of each layer.
    """
    paths: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for layer in network.layers:
        # Keras numbers the layers of each class; older versions write no other name.
        kind = _snake_case(type(layer).__name__)
        place = f"layers/{kind}_{numbers[kind]}" if numbers[kind] else f"layers/{kind}"
        numbers[kind] += 1
        for position, variable in enumerate(layer.weights):
            for known in (layer.name, place):
                paths[f"{known}/vars/{position}"] = variable.path
    own = {variable.path for variable in network.weights}
    translation = Translation()
    for name, value in tensors.items():
        if name in paths or name in own:
            translation.add(paths.get(name, name), name, value)
        elif not _TRAINING_STATE.search(name):
            translation.unknown.append(name)
    return translation


def _snake_case(name: str) -> str:
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
