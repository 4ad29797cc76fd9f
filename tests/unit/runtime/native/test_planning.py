"""Which steps a network becomes: what fuses, what is cut, which banks there are, and what is said of it."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D
from condconv_serve.runtime.kernels.program import Activation, BankType, Place, Step, StepKind, ValueType
from condconv_serve.runtime.lowering import NativeLowering, lower
from condconv_serve.runtime.lowering.native.fusing import MAX_PRODUCER_DEPTH
from condconv_serve.runtime.outputs import with_features
from tests.unit.runtime.native.interpreter import NumpyKernels
from tests.unit.runtime.networks import network, squeezed, static

pytestmark = pytest.mark.tensorflow

SIZE = 16
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE)
Apply = Callable[..., Any]
Randomise = Callable[[Any], Any]


def planned(apply: Apply, *, size: int = SIZE, **options: Any) -> NumpyKernels:
    """The programs of someone's own network, `apply(inputs, routing)` between a router and a classifier."""
    kernels = NumpyKernels()
    lower(network(apply, size=size), NativeLowering(kernels=kernels, **options), preprocessing=PREPROCESSING)
    return kernels


def text(step: Step) -> str:
    """A step in words, such as "depthwise+producer+pooled SWISH"."""
    extras = ("producer", "scale", "residual", "pooled") if step.kind in (StepKind.CONV, StepKind.DEPTHWISE) else ()
    parts = [part for part in extras if getattr(step, part) is not None]
    activation = "" if step.activation is Activation.LINEAR else f" {step.activation.name}"
    return "+".join([step.kind.name.lower(), *parts]) + activation


def steps_of(apply: Apply) -> list[str]:
    inputs, routing = keras.Input((SIZE, SIZE, 3)), keras.Input((3,))
    kernels = NumpyKernels()
    lower(keras.Model([inputs, routing], apply(inputs, routing)), NativeLowering(kernels=kernels))
    return [text(step) for step in kernels.steps]


def residual(x: Any, r: Any) -> Any:
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    return layers.ReLU()(layers.Add()([y, layers.Dropout(0.2)(x)]))


def two_branches(x: Any, r: Any) -> Any:
    return layers.Add()([layers.Conv2D(8, 1)(x), layers.Conv2D(8, 3, padding="same")(x)])


def expanded(filters: int, depth: int = 8, **options: Any) -> Apply:
    def apply(x: Any, r: Any) -> Any:
        x = layers.Conv2D(depth, 1)(x)
        x = layers.Activation("silu")(CondConv2D(filters, 1, 3, use_bias=False)(x, r))
        return layers.ReLU(6)(layers.DepthwiseConv2D(3, padding="same", **options)(x))

    return apply


def read_twice(x: Any, r: Any) -> Any:
    x = layers.Conv2D(8, 1, activation="relu")(x)
    return layers.Add()([layers.DepthwiseConv2D(3, padding="same")(x), x])


def two_routings(x: Any, r: Any) -> Any:
    other = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(x)))
    return DepthwiseCondConv2D(3, 3)(CondConv2D(8, 1, 3)(x, r), other)


def routed_by_a_convolution(x: Any, r: Any) -> Any:
    """A vector that alone a depthwise convolution reads, but as its routing."""
    routing = layers.Flatten()(layers.Conv2D(3, SIZE)(x))
    return DepthwiseCondConv2D(3, 3)(x, routing)


def excited(x: Any, r: Any) -> Any:
    x = layers.DepthwiseConv2D(3)(layers.Conv2D(8, 1)(x))
    scale = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    scale = layers.Conv2D(8, 1, activation="hard_sigmoid")(layers.Conv2D(2, 1, activation="relu")(scale))
    return layers.Conv2D(4, 1)(layers.Multiply()([x, scale]))


def zeros_read_twice(x: Any, r: Any) -> Any:
    x = layers.ZeroPadding2D(1)(x)
    return layers.Concatenate()([layers.Conv2D(3, 3, padding="same")(x), x])


def padded_pool(activation: str) -> Apply:
    """Zeros around a map, and its largest numbers. Where these may be below zero, the zeros count."""

    def apply(x: Any, r: Any) -> Any:
        x = layers.ZeroPadding2D(1)(layers.Conv2D(4, 3, activation=activation)(x))
        return layers.MaxPooling2D(3, 2)(x)

    return apply


def flattened(x: Any, r: Any) -> Any:
    x = layers.Flatten()(layers.Conv2D(3, 3, strides=4)(x))
    return layers.Reshape((1, 1, 6))(layers.Dense(6, activation="relu")(x))


def routed_dense(x: Any, r: Any) -> Any:
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
    return layers.ReLU()(layers.BatchNormalization()(CondConvDense(6, 3)(x, r)))


CASES: dict[str, tuple[Apply, list[str]]] = {
    "norm and activation": (static(layers.Conv2D(4, 3)), ["conv SWISH"]),
    "a layer's own activation": (lambda x, r: layers.Conv2D(4, 3, activation="relu6")(x), ["conv RELU6"]),
    "a residual, then activated": (residual, ["conv RELU", "conv+residual RELU"]),
    "the later one of two adds": (two_branches, ["conv", "conv+residual"]),
    "expansion and depthwise": (expanded(16), ["conv", "depthwise+producer RELU6"]),
    "too deep an expansion": (expanded(16, MAX_PRODUCER_DEPTH + 1), ["conv", "conv SWISH", "depthwise RELU6"]),
    "an expansion that is read twice": (read_twice, ["conv RELU", "depthwise", "add"]),
    "a stem": (
        lambda x, r: layers.DepthwiseConv2D(3, activation="relu")(layers.Conv2D(8, 3, strides=2)(x)),
        ["depthwise+producer RELU"],
    ),
    "two routings": (two_routings, ["conv", "pool", "conv SIGMOID", "conv", "depthwise"]),
    "routing by a convolution": (routed_by_a_convolution, ["conv", "depthwise"]),
    "squeeze and excitation": (
        excited,
        ["depthwise+producer+pooled", "conv RELU", "conv HARD_SIGMOID", "conv+scale"],
    ),
    "a scale in mixed kernels": (
        squeezed(lambda x, r: CondConv2D(4, 1, 3)(x, r)),
        ["conv", "pool", "conv SIGMOID", "conv+scale"],
    ),
    "a scale of fewer numbers than the kernel": (
        squeezed(lambda x, r: CondConv2D(400, 1, 3)(x, r)),
        ["conv", "pool", "conv SIGMOID", "scale", "conv"],
    ),
    "norms that are not folded": (
        lambda x, r: layers.Conv2D(4, 3)(layers.ReLU()(layers.BatchNormalization()(layers.AveragePooling2D(2)(x)))),
        ["depthwise RELU", "conv"],
    ),
    "a vector of a whole map": (flattened, ["conv", "conv RELU"]),
    "a dense layer with experts": (routed_dense, ["conv", "pool", "conv RELU"]),
    "zeros around the input": (
        lambda x, r: layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x)),
        ["conv"],
    ),
    "largest numbers": (lambda x, r: layers.MaxPooling2D(3, 2, "same")(layers.Conv2D(4, 3)(x)), ["conv", "max_pool"]),
    "zeros around numbers that aren't negative": (padded_pool("relu"), ["conv RELU", "max_pool"]),
    "zeros around any numbers": (padded_pool("silu"), ["conv SWISH"]),
    "zeros that are read twice": (zeros_read_twice, ["conv"]),
    "zeros that fill whole windows": (lambda x, r: layers.Conv2D(4, 1)(layers.ZeroPadding2D(2)(x)), ["conv"]),
    "as many groups as channels": (lambda x, r: layers.Conv2D(3, 3, groups=3)(x), ["depthwise"]),
    "sums of operators": (lambda x, r: layers.Conv2D(3, 1)(x) + x, ["conv+residual"]),
    "products": (
        lambda x, r: layers.Multiply()([layers.Conv2D(3, 1)(x), layers.Conv2D(3, 1)(x)]),
        ["conv", "conv", "multiply"],
    ),
}


@pytest.mark.parametrize(("apply", "expected"), CASES.values(), ids=CASES)
def test_what_fuses(apply: Apply, expected: list[str]) -> None:
    assert steps_of(apply) == expected


def test_the_same_mean_is_computed_once() -> None:
    def apply(x: Any, r: Any) -> Any:
        x = layers.Conv2D(4, 1)(x)
        means = [layers.GlobalAveragePooling2D(keepdims=keep)(x) for keep in (True, False)]
        means[1] = layers.Dense(4)(means[1])
        return layers.Multiply()([layers.Conv2D(4, 3)(layers.Multiply()([x, means[0]])), layers.Conv2D(4, 3)(x)])

    assert sum(step.kind is StepKind.POOL for step in planned(apply).steps) == 3  # router, classifier, and here


@pytest.mark.parametrize("bfloat16", [False, True])
def test_features_cost_no_step(bfloat16: bool) -> None:
    """The program writes them where the caller reads them, instead of into its scratch memory."""
    model = network(expanded(16))
    programs = []
    for one in (model, with_features(model)):
        kernels = NumpyKernels()
        lower(one, NativeLowering(kernels=kernels, bfloat16=bfloat16), preprocessing=PREPROCESSING)
        programs += [program.spec for program in kernels.programs]
    without, with_them = programs
    assert [text(step) for step in with_them.steps] == [text(step) for step in without.steps]
    outputs = [[v.shape for v in spec.values if v.place is Place.OUTPUT] for spec in programs]
    assert sorted(outputs[1]) == sorted([*outputs[0], (16,)])
    assert len(with_them.values) == len(without.values)


def test_pixels_are_normalised_by_the_first_convolution() -> None:
    kernels = NumpyKernels()
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.DepthwiseConv2D(3)(layers.Conv2D(8, 3, strides=2, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    lower(model, NativeLowering(kernels=kernels), preprocessing=PREPROCESSING)
    (program,) = kernels.programs
    assert [step.normalise for step in program.spec.steps] == [True, False]
    assert [v.type for v in program.spec.values if v.place is Place.INPUT] == [ValueType.UINT8]
    assert program.spec.mean == PREPROCESSING.mean
    kernels = NumpyKernels()
    lower(model, NativeLowering(kernels=kernels))  # without rows of pixels
    (program,) = kernels.programs
    assert not any(step.normalise for step in program.spec.steps)
    assert [v.type for v in program.spec.values if v.place is Place.INPUT] == [ValueType.FLOAT32]


def test_maps_run_row_by_row_until_kernels_are_mixed() -> None:
    def apply(x: Any, r: Any) -> Any:
        x = layers.Conv2D(8, 3, padding="same")(layers.Conv2D(8, 3, padding="same")(x))
        return layers.Conv2D(8, 1)(CondConv2D(8, 1, 3)(x, r))

    (program,) = planned(apply, size=64).programs
    first, second = program.spec.stages
    assert (first.row_by_row, second.row_by_row) == (True, False)
    mixed = next(n for n, step in enumerate(program.spec.steps) if step.routing is not None)
    assert first.last == mixed
    alone = [value for value in program.spec.values if value.row_by_row]
    assert [value.shape for value in alone if len(value.shape) == 3] == [(64, 64, 8)]


def test_large_weights_are_read_once_for_all_rows() -> None:
    (program,) = planned(lambda x, r: layers.Conv2D(200, 3)(layers.Conv2D(200, 3, strides=4)(x))).programs
    assert [stage.row_by_row for stage in program.spec.stages] == [False]


def test_steps_number_by_number_write_where_they_read() -> None:
    (program,) = planned(squeezed(lambda x, r: layers.Conv2D(400, 1)(x))).programs
    (step,) = (step for step in program.spec.steps if step.kind is StepKind.SCALE)
    source, output = (program.spec.values[number] for number in (step.input, step.output))
    assert (source.offset, source.row_by_row) == (output.offset, output.row_by_row)


@pytest.mark.parametrize(("dtype", "expected"), [(np.float16, BankType.FLOAT16), (np.float32, BankType.FLOAT32)])
def test_experts_of_half_floats_are_held_as_such(dtype: Any, expected: BankType, randomise: Randomise) -> None:
    model = randomise(network(lambda x, r: layers.BatchNormalization()(CondConv2D(4, 1, 3)(x, r))))
    for weight in model.weights:
        weight.assign(np.asarray(weight).astype(dtype))
    kernels = NumpyKernels()
    lower(model, NativeLowering(kernels=kernels))
    banks = kernels.programs[0].banks
    assert [bank.options.type for bank in banks if bank.options.mixed] == [expected]
    assert {bank.options.type for bank in banks if not bank.options.mixed} == {BankType.FLOAT32}


def test_in_bfloat16_maps_are_halved_and_vectors_are_not() -> None:
    kernels = planned(squeezed(lambda x, r: CondConv2D(4, 1, 3)(x, r)), bfloat16=True)
    (program,) = kernels.programs
    types = {(value.place, len(value.shape) == 3 and value.shape[0] > 1): value.type for value in program.spec.values}
    assert types[Place.SCRATCH, True] is ValueType.BFLOAT16
    assert types[Place.SCRATCH, False] is types[Place.OUTPUT, False] is ValueType.FLOAT32
    held = {bank.options.mixed: bank.options.type for bank in program.banks if bank.experts.shape[1:3] == (1, 1)}
    assert held[True] is BankType.BFLOAT16


def test_banks_are_closed_when_their_programs_are_made() -> None:
    kernels = planned(excited)
    assert kernels.open == kernels.programs


def test_layers_that_are_called_twice_have_one_bank() -> None:
    def apply(x: Any, r: Any) -> Any:
        convolve = layers.Conv2D(3, 3, padding="same", activation="relu")
        return convolve(convolve(x))

    (program,) = planned(apply).programs
    first, second = (step.bank for step in program.spec.steps if step.out_height > 1)
    assert first is not None
    assert second is not None
    assert program.banks[first] is program.banks[second]


def used(apply: Apply) -> Any:
    return lower(network(apply), NativeLowering(kernels=NumpyKernels())).native


def test_what_is_said_of_layers_that_no_kernel_knows() -> None:
    def apply(x: Any, r: Any) -> Any:
        x = layers.AveragePooling2D(2, name="average")(layers.Conv2D(4, 3)(x))
        return layers.Conv2D(4, 3, activation="gelu", name="smooth")(x)

    native = used(apply)
    assert (native.state, native.isa) == ("used", "numpy")
    assert native.tensorflow_layers == 4  # with the classifier, which isn't worth a program
    assert "AveragePooling2D average: no kernel computes it" in native.reason
    assert "Conv2D smooth: no kernel has its activation gelu" in native.reason
    assert "\n" not in native.reason


def test_what_is_said_of_weights_that_no_bank_holds() -> None:
    inputs = keras.Input((300, 300, 3))
    flat = layers.Dense(2, name="flat")(layers.Flatten()(layers.Conv2D(2, 1)(inputs)))
    routing = layers.Dense(2000)(layers.GlobalAveragePooling2D()(inputs))
    mixed = CondConv2D(2, 3, 2000, name="mixed")(inputs, routing)
    native = lower(keras.Model(inputs, [flat, mixed]), NativeLowering(kernels=NumpyKernels())).native
    assert native.state == "used"
    assert "Dense flat: its kernel of 300 x 300 is too large" in native.reason
    assert "CondConv2D mixed: it has more than 1024 experts" in native.reason


def test_what_is_said_when_all_is_native() -> None:
    native = used(excited)
    assert (native.state, native.tensorflow_layers, native.reason) == ("used", 0, "they compute every layer")


def test_what_is_said_when_nothing_is() -> None:
    native = used(lambda x, r: layers.Conv2D(6, 3, groups=3)(x))
    assert (native.state, native.isa, native.native_layers) == ("unsupported", None, 0)
    assert native.reason.startswith("Conv2D conv2d")
    assert "it has 3 groups" in native.reason
