"""What all training runs begin with, and how they fail if memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from condconv_serve.errors import OutOfMemory
from condconv_serve.store import Bundle, open_bundle
from condconv_serve.store.new_bundle import check_free, next_version
from condconv_serve.training.checkpoint import RunDirectory
from condconv_serve.training.request import TrainingRequest


def begin(request: TrainingRequest, store: Path) -> tuple[Bundle, str, RunDirectory]:
    """Open the bundle to start from, choose a version that is free, and seed what is random.

    Raises:
        BundleError: the bundle is damaged, or the version exists already.
        ConfigurationError: a value is impossible.
    """
    request.check()
    parent = open_bundle(request.bundle)
    version = request.version or next_version(store, request.name)
    check_free(store, request.name, version)
    keras.utils.set_random_seed(request.seed)
    return parent, version, RunDirectory(store, request.name, version)


@contextlib.contextmanager
def memory_named(request: TrainingRequest, *, image_size: int) -> Iterator[None]:
    """Say what to change if there is too little memory.

    Raises:
        OutOfMemory: the batches are too large.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise OutOfMemory(
            f"There is too little memory for batches of {request.batch_size} images of {image_size} pixels; choose a "
            "smaller --batch-size or --image-size."
        ) from error
