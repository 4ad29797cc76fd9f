from dataclasses import replace

import numpy as np
import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers import Translation, assemble

pytestmark = pytest.mark.tensorflow

EXPECTED = {"stem/kernel": (3, 3, 3, 8), "logits/bias": (10,), "block_8_expand/kernel": (4, 1, 1, 8, 48)}


def translation(**changed):
    """A fitting one, or one with other shapes; a shape of None leaves the tensor out."""
    made = Translation()
    for path, shape in {**EXPECTED, **changed}.items():
        if shape is not None:
            made.add(path, f"their/{path}", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    return made


def refusal(made, expected=EXPECTED):
    with pytest.raises(ImportFailed) as caught:
        assemble(made, expected, architecture="the-network")
    return str(caught.value)


def test_fitting_tensors_keep_their_values():
    made = translation()
    values = assemble(made, EXPECTED, architecture="the-network")
    assert {path: value.shape for path, value in values.items()} == EXPECTED
    for tensor in made.tensors:
        np.testing.assert_array_equal(values[tensor.path], tensor.value)


def test_flattened_experts_are_unflattened():
    values = assemble(translation(**{"block_8_expand/kernel": (4, 384)}), EXPECTED, architecture="the-network")
    np.testing.assert_array_equal(
        values["block_8_expand/kernel"], np.arange(4 * 384, dtype=np.float32).reshape(4, 1, 1, 8, 48)
    )


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32():
    made = translation(**{"logits/bias": None})
    made.add("logits/bias", "their/logits/bias", np.full(10, 1e300))
    assert refusal(made).endswith("not finite: their/logits/bias.")


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("stem/kernel", (3, 3, 8, 3)),
        ("stem/kernel", (27, 8)),  # only experts may be flattened
        ("logits/bias", (1000,)),
        ("logits/bias", (1, 10)),
        ("block_8_expand/kernel", (8, 192)),  # as many numbers, but other experts
        ("block_8_expand/kernel", (4, 383)),
        ("block_8_expand/kernel", (384, 4)),
    ],
)
def test_misshaped(path, shape):
    says = refusal(translation(**{path: shape}))
    assert says == (
        f"The weights don't fit the-network: misshaped: their/{path} is {list(shape)}, "
        f"but {path} is {list(EXPECTED[path])}."
    )


def test_missing():
    assert refusal(translation(**{"logits/bias": None})) == ("The weights don't fit the-network: missing: logits/bias.")


def test_left_over():
    made = translation()
    made.add("block_99_expand/kernel", "their/spare", np.zeros(3, np.float32))
    made.unknown.append("their/odd_one")
    assert refusal(made) == "The weights don't fit the-network: left over: their/odd_one, their/spare."


def test_given_twice():
    made = translation()
    made.add("logits/bias", "their/other_bias", np.zeros(10, np.float32))
    assert refusal(made).endswith("given twice: their/other_bias and their/logits/bias (both logits/bias).")


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool, object, np.complex64])
def test_no_floating_point_numbers(dtype):
    made = translation()
    made.tensors[1] = replace(made.tensors[1], value=np.ones(10, dtype))
    assert refusal(made).endswith(f"no floating-point numbers: their/logits/bias is {np.dtype(dtype).name}.")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    made = translation()
    made.tensors[0].value[0, 1, 2, 3] = value
    assert refusal(made).endswith("not finite: their/stem/kernel.")


def test_every_kind_of_misfit_is_told_at_once():
    made = translation(**{"stem/kernel": None, "logits/bias": (11,)})
    made.add("block_8_expand/kernel", "their/twin", np.zeros((4, 384), np.float32))
    made.unknown.append("their/odd_one")
    made.tensors[1].value[0] = np.nan
    says = refusal(made)
    for kind in ("missing: stem/kernel", "left over: their/odd_one", "given twice: their/twin", "misshaped: their/log"):
        assert kind in says
    assert says.endswith("not finite: their/block_8_expand/kernel.")


def test_long_lists_are_cut_short():
    says = refusal(Translation(), {f"layer_{i:02}/kernel": (1,) for i in range(20)})
    assert "layer_07/kernel and 12 more." in says
    assert "layer_08" not in says
