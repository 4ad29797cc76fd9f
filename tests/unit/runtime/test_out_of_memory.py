"""What TensorFlow says of too little memory, in our own words."""

import pytest
import tensorflow as tf

from condconv_serve.errors import OutOfMemory
from condconv_serve.runtime.tensorflow_engine import reporting_memory

pytestmark = pytest.mark.tensorflow


def test_an_allocation_that_fails() -> None:
    with pytest.raises(OutOfMemory, match="out of memory") as caught, reporting_memory():
        tf.zeros([2**46])
    assert caught.value.retry_after == 5


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError), reporting_memory():
        tf.reshape(tf.zeros([3]), [2])
