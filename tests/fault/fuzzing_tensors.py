"""Fuzzed requests of the tensor protocols: right ones whose parts lie, in ways that follow from a seed and a number.

In turn they go to the Open Inference Protocol and to TensorFlow Serving's, over REST and over gRPC; half of each to a
detector, the others to a classifier.
"""

from __future__ import annotations

import random

from tests.fault import fuzzing_open_inference, fuzzing_tensorflow_serving
from tests.fault.fuzzing_requests import CLASSIFIER, DETECTOR, GrpcRequest, HttpRequest

_KINDS = (
    fuzzing_open_inference.open_inference_call,
    fuzzing_open_inference.http_request,
    fuzzing_tensorflow_serving.call,
    fuzzing_tensorflow_serving.http_request,
)


def fuzzed(number: int, *, seed: int) -> HttpRequest | GrpcRequest:
    """Make request `number`; the same each time."""
    rng = random.Random(f"{seed}:{number}")
    turn, kind = divmod(number, len(_KINDS))
    return _KINDS[kind](rng, CLASSIFIER if turn % 2 else DETECTOR)
