"""Networks without values: names and sizes of their variables, at no cost in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras


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
