"""Random networks, planned and computed, against plain Keras."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from condconv_serve.domain import Preprocessing
from condconv_serve.runtime.lowering import NativeLowering, lower
from tests.unit.runtime.native.interpreter import NumpyKernels
from tests.unit.runtime.random_networks import RandomNetwork

pytestmark = pytest.mark.tensorflow

SIZE = 14
ROWS = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), np.uint8)
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE)
SEEDS = (1, 2, 3)

Randomise = Callable[[Any], Any]
AssertClose = Callable[..., None]


def computed(model: Any, lowering: NativeLowering) -> Any:
    lowered = lower(model, lowering, preprocessing=PREPROCESSING)
    assert lowered.native.state == "used"
    signature = tf.TensorSpec((None, SIZE, SIZE, 3), tf.uint8)
    outputs = tf.function(lowered.compute, autograph=False).get_concrete_function([signature])(tf.constant(ROWS))
    for resource in lowered.resources:
        resource.close()
    return outputs


def assert_equal(found: Any, expected: Any, tolerance: float, assert_close: AssertClose) -> None:
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        assert_close(one, other, tolerance)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(
    seed: int, randomise: Randomise, assert_close: AssertClose, native_lowering: NativeLowering
) -> None:
    model = randomise(RandomNetwork(seed, size=SIZE, steps=14).model)
    expected = model((ROWS.astype(np.float32) - 127) / 128, training=False)
    assert_equal(computed(model, native_lowering), expected, 1e-5, assert_close)
    halved = computed(model, NativeLowering(bfloat16=True, kernels=NumpyKernels()))
    assert_equal(halved, expected, 5e-2, assert_close)
