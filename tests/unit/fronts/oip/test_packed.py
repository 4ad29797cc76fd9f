"""Numbers of packed fields."""

from __future__ import annotations

import numpy as np
import pytest

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.oip.grpc_messages import MESSAGES
from condconv_serve.fronts.oip.packed import floats_of, small_numbers_of

CONTENTS = MESSAGES.message("inference.InferTensorContents")


@pytest.mark.parametrize("values", [[], [0], [127], [128], [255], range(256), [0, 255, 1, 128, 127] * 1000])
def test_small_numbers(values):
    contents = CONTENTS(uint_contents=values)
    found = small_numbers_of(contents, "uint_contents", name="pixels")
    assert (found.dtype, found.tolist()) == (np.dtype(np.uint8), list(values))


@pytest.mark.parametrize("values", [[256], [1, 2, 16383], [16384], [2**32 - 1], [5, 2**21, 5]])
def test_numbers_that_are_too_large(values):
    with pytest.raises(InvalidParameter, match="0 to 255"):
        small_numbers_of(CONTENTS(uint_contents=values), "uint_contents", name="pixels")


@pytest.mark.parametrize("count", [0, 1, 31, 32, 5000, 600_000])
def test_floats(count):
    values = np.random.default_rng(0).uniform(0, 255, count).astype(np.float32)
    found = floats_of(CONTENTS(fp32_contents=values), "fp32_contents")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("unknown", [b"\xea\x04\x03zzz", b"\xea\x04\x01z"])
def test_fields_of_a_newer_protocol_are_passed_over(unknown):
    def with_unknown(**contents):
        return CONTENTS.FromString(CONTENTS(**contents).SerializeToString() + unknown)

    assert floats_of(with_unknown(fp32_contents=[1.5, 2.0]), "fp32_contents").tolist() == [1.5, 2.0]
    small = with_unknown(uint_contents=[1, 200])
    assert small_numbers_of(small, "uint_contents", name="pixels").tolist() == [1, 200]
