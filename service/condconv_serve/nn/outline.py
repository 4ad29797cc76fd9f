"""Networks without values: names and sizes of their variables, at no cost in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import keras
from numpy.typing import NDArray


def outline(build: Callable[[], keras.Model]) -> keras.Model:
    """Build a network whose variables have paths and shapes, but no values and no memory.

    A few bytes may ask for a network of terabytes; the outline shows this before it is built.
    """

    def build_without_values() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return build()

    # Keras notes variables without values in its state of the thread, and would give them values at the next occasion.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build_without_values).result()


def give_values(network: keras.Model, values: Mapping[str, NDArray[Any]]) -> None:
    """Make a network of its outline.

    A network that is built at once makes up random weights, which take longer than all else and are then overwritten.

    Args:
        network: from `outline`, whose variables have no values yet.
        values: of its variables by path, in their shapes. Others, such as seeds, begin as in a network that is built.
    """
    for variable in network.variables:
        if variable.path in values:
            variable._initializer = partial(_given, values[variable.path])
        variable._deferred_initialize()


def _given(value: NDArray[Any], _: tuple[int, ...], dtype: str) -> Any:
    return keras.ops.convert_to_tensor(value, dtype)
