"""Programs: what they compute, whatever the chunks and stages, and which of them are refused in which words."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import abi, library
from condconv_serve.runtime.kernels.abi import Activation, Place, StepKind, ValueType
from condconv_serve.runtime.kernels.program import Bank, BankOptions, Program, ProgramSpec, Stage, Step, Value, alive
from tests.unit.runtime.native_kernels.blocks import EXPERTS, TOO_MUCH, Block, promises_any_memory

pytestmark = pytest.mark.usefixtures("native")

FLOAT = ValueType.FLOAT32


@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 4, 16])
def test_block_computes_what_numpy_does(chunk, row_by_row):
    block = Block()
    images, routing = block.inputs(7)
    with block.program(chunk=chunk, row_by_row=row_by_row) as program:
        logits, pooled = program.run([images, routing])
    for found, wanted in zip((logits, pooled), block.expected(images, routing), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_rows_alone_and_in_any_batch_are_the_same():
    block = Block(size=9, channels=17, expanded=33)
    images, routing = block.inputs(9)
    with block.program(chunk=4, row_by_row=True) as program:
        together = program.run([images, routing])
        for row in range(9):
            alone = program.run([images[row : row + 1], routing[row : row + 1]])
            for all_rows, one in zip(together, alone, strict=True):
                np.testing.assert_allclose(one[0], all_rows[row], rtol=1e-6, atol=1e-6)


def test_no_rows_give_no_rows():
    block = Block()
    with block.program() as program:
        assert [output.shape for output in program.run(block.inputs(0))] == [(0, 5), (0, 8)]


def test_inputs_of_another_shape_or_type_are_refused():
    block = Block()
    images, routing = block.inputs(2)
    with block.program() as program:
        for inputs, message in (
            ([images], "takes 2 inputs, not 1"),
            ([images, routing[:1]], r"Input 1 of the program is float32 \(2, 3\), not float32 \(1, 3\)"),
            ([images[..., :7], routing], r"Input 0 .* not float32 \(2, 6, 6, 7\)"),
            ([images, routing.astype(np.float64)], r"Input 1 .* not float64 \(2, 3\)"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                program.run(inputs)
    with pytest.raises(ConfigurationError, match="is closed"):
        program.run([images, routing])


def test_strided_inputs_are_read_as_they_are():
    block = Block()
    images, routing = block.inputs(4)
    wide = np.repeat(images, 2, axis=-1)
    with block.program() as program:
        np.testing.assert_array_equal(program.run([wide[..., ::2], routing])[0], program.run([images, routing])[0])


def test_batches_below_zero_and_missing_pointers(native):
    block = Block()
    with block.program() as program:
        assert native.cc_program_run(program.number, -1, (ctypes.c_void_p * 2)(), (ctypes.c_void_p * 2)()) == -1
        assert "0 or more rows, not -1" in str(library.last_error())
        assert native.cc_program_run(program.number, 1, None, None) == -1
        assert "needs inputs and outputs" in str(library.last_error())


def test_program_of_one_instruction_set_takes_no_banks_of_another():
    block = Block()
    best, generic = library.isas()[0], "generic"
    if best == generic:
        pytest.skip("this CPU has one instruction set only")
    library.use_isa(generic)
    try:
        banks = block.banks()
    finally:
        library.use_isa(best)
    with pytest.raises(ConfigurationError, match=f"Bank 0 is packed for generic, and the program is for {best}"):
        Program(block.spec(), banks)


def test_steps_number_by_number():
    n, c = 3, 10
    shape = (n, n, c)
    values = [
        Value(place=Place.INPUT, type=FLOAT, shape=shape),
        Value(place=Place.INPUT, type=FLOAT, shape=(c,), number=1),
        Value(place=Place.OUTPUT, type=FLOAT, shape=shape),
        Value(place=Place.OUTPUT, type=FLOAT, shape=shape, number=1),
        Value(place=Place.OUTPUT, type=FLOAT, shape=shape, number=2),
        Value(place=Place.OUTPUT, type=FLOAT, shape=shape, number=3),
    ]
    at: dict[str, Any] = {"channels": c, "height": n, "width": n}
    steps = [
        Step(kind=StepKind.SCALE, input=0, output=2, scale=1, **at),
        Step(kind=StepKind.ADD, input=0, output=3, residual=2, activation=Activation.RELU, **at),
        Step(kind=StepKind.MULTIPLY, input=3, output=4, residual=2, **at),
        Step(kind=StepKind.ACTIVATE, input=0, output=5, activation=Activation.HARD_SWISH, **at),
    ]
    rng = np.random.default_rng(0)
    x, scale = rng.normal(0, 3, (5, *shape)).astype(np.float32), rng.normal(size=(5, c)).astype(np.float32)
    with Program(ProgramSpec(values=values, steps=steps, stages=[Stage(0, 4)], chunk=2)) as program:
        scaled, added, multiplied, activated = program.run([x, scale])
    np.testing.assert_allclose(scaled, x * scale[:, None, None], rtol=1e-6)
    np.testing.assert_allclose(added, np.maximum(x + scaled, 0), rtol=1e-6)
    np.testing.assert_allclose(multiplied, added * scaled, rtol=1e-6)
    np.testing.assert_allclose(activated, x * np.clip(x + 3, 0, 6) / 6, rtol=1e-5, atol=1e-6)


def test_pixels_are_normalised_by_channel():
    experts = np.random.default_rng(0).normal(size=(1, 3, 3, 3, 6)).astype(np.float32)
    values = [
        Value(place=Place.INPUT, type=ValueType.UINT8, shape=(8, 8, 3)),
        Value(place=Place.OUTPUT, type=FLOAT, shape=(4, 4, 6)),
    ]
    step = Step(
        kind=StepKind.CONV,
        input=0,
        output=1,
        bank=0,
        normalise=True,
        height=8,
        width=8,
        channels=3,
        out_height=4,
        out_width=4,
    )
    mean, scale = (120.0, 110.0, 100.0), (0.1, 0.2, 0.3)
    spec = ProgramSpec(values=values, steps=[step], stages=[Stage(0, 1)], mean=mean, scale=scale)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    with Bank(experts, BankOptions(strides=(2, 2))) as bank, Program(spec, [bank]) as program:
        (found,) = program.run([pixels])
    x = np.pad((pixels - np.array(mean)) * np.array(scale), ((0, 0), (0, 1), (0, 1), (0, 0)))
    wanted = sum(
        x[:, i : i + 7 : 2, j : j + 7 : 2] @ experts[0, i, j].astype(np.float64) for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def changed(spec: ProgramSpec, **changes: Any) -> ProgramSpec:
    """The spec with some fields of some values (`v2`), steps (`s0`) and stages (`g1`), or of its own, changed."""
    lists: dict[str, list[Any]] = {"v": list(spec.values), "s": list(spec.steps), "g": list(spec.stages)}
    own = {}
    for name, change in changes.items():
        if name[0] in lists and name[1:].isdigit():
            lists[name[0]][int(name[1:])] = dataclasses.replace(lists[name[0]][int(name[1:])], **change)
        else:
            own[name] = change
    return dataclasses.replace(spec, **{"values": lists["v"], "steps": lists["s"], "stages": lists["g"]} | own)


def refusal(spec: ProgramSpec, banks: list[Bank]) -> str:
    before = alive()[1]
    with pytest.raises(ConfigurationError) as caught:
        Program(spec, banks)
    assert alive()[1] == before
    return str(caught.value)


POOL = {
    "kind": StepKind.MAX_POOL, "activation": 0, "window_height": 2, "window_width": 2, "window_stride_height": 2,
    "window_stride_width": 2, "out_height": 3, "out_width": 3,
}  # fmt: skip


# Values: 0 images, 1 routing, 2 depthwise, 3 pooled, 4 squeezed, 5 projected, 6 and 7 outputs.
# Steps: 0 depthwise with producer, 1 squeeze, 2 project, 3 activate, 4 pool, 5 classify. Banks: in that order, from 0.
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 0}, "1 to 4096 rows per chunk, not 0"),
        ({"chunk": 5000}, "rows per chunk, not 5000"),
        ({"row_bytes": -1}, "scratch has 0 to 2^40 bytes"),
        ({"chunk_bytes": 2**50}, "scratch has 0 to 2^40 bytes"),
        ({"chunk_bytes": 64}, "Value 2, 2880 bytes at 0, isn't inside its 64 bytes of scratch"),
        ({"steps": []}, "1 to 4096 steps, not 0"),
        ({"stages": []}, "1 to 4096 stages, not 0"),
        ({"values": []}, "2 to 4096 values, not 0"),
        ({"v2": {"place": 7}}, "Value 2 is in no place"),
        ({"v2": {"type": 9}}, "Value 2 has no type"),
        ({"v2": {"type": ValueType.UINT8}}, "Value 2 is uint8, and no input"),
        ({"v2": {"shape": (36, 20)}}, "Value 2 has 1 or 3 dimensions, not 2"),
        ({"v2": {"shape": (1, 6, 6, 20)}}, "Value 2 has 1 or 3 dimensions, not 4"),
        ({"v2": {"shape": ()}}, "Value 2 has 1 or 3 dimensions, not 0"),
        ({"v2": {"shape": (6, 0, 20)}}, "Value 2 can't have 0 numbers in dimension 1"),
        ({"v2": {"shape": (6, 2**31 - 1, 20)}}, "Value 2 can't have 2147483647 numbers in dimension 1"),
        ({"v2": {"shape": (2**12, 2**12, 2**12)}}, "Value 2 can't have 4096 numbers in dimension 2"),
        ({"v2": {"offset": -64}}, "Value 2, 2880 bytes at -64, isn't inside"),
        ({"v2": {"offset": 2}}, "or at no multiple of 4"),
        ({"v2": {"offset": 2**62}}, "isn't inside"),
        ({"v2": {"row_by_row": 3}}, "row by row or not: 1 or 0"),
        ({"v1": {"number": 0}}, "Two values are input 0"),
        ({"v1": {"number": 2}}, "Value 1 is input 2 of 2"),
        ({"v6": {"number": -1}}, "Value 6 is output -1 of 2"),
        ({"v6": {"number": 0}}, "Two values are output 0"),
        ({"g0": {"first": 1}}, "Stage 0 has the steps from 1 to 4"),
        ({"g0": {"last": 0}}, "Stage 0 has the steps from 0 to 0"),
        ({"g1": {"first": 3}}, "Stage 1 has the steps from 3 to 6"),
        ({"g1": {"last": 7}}, "Stage 1 has the steps from 4 to 7"),
        ({"g1": {"last": 5}}, "The stages have 5 of 6 steps"),
        ({"g1": {"row_by_row": 2}}, "Stage 1"),
        ({"s1": {"kind": 9}}, "Step 1 is of no kind that there is: 9"),
        ({"s1": {"kind": -1}}, "Step 1 is of no kind that there is: -1"),
        ({"s1": {"input": 8}}, "Step 1 (conv) has value 8 as input, of 8 values"),
        ({"s1": {"input": None}}, "Step 1 (conv) has value -1 as input"),
        ({"s1": {"output": -5}}, "Step 1 (conv) has value -5 as output"),
        ({"s1": {"output": 1}}, "Step 1 (conv) wants its output to be 1 x 1 x 20"),
        ({"s1": {"input": 4}}, "Step 1 reads value 4, which nothing has written"),
        ({"s1": {"channels": 19}}, "Step 1 (conv) wants its input to be 1 x 1 x 19"),
        ({"s1": {"activation": 7}}, "activations 7 and 0, of 7"),
        ({"s1": {"producer_activation": -1}}, "activations 5 and -1"),
        ({"s1": {"producer_activation": 1}}, "has no producer for activation 1"),
        ({"s1": {"bank": None}}, "has bank -1 as bank, of 5 banks"),
        ({"s1": {"bank": 5}}, "has bank 5 as bank"),
        ({"s1": {"bank": 1}}, "has a bank as bank that is depthwise"),
        ({"s1": {"bank": 0}}, "has 20 channels, and its bank wants 8"),
        ({"s1": {"producer": 2}}, "can't have a producer: 2"),
        ({"s1": {"pooled": 3}}, "can't pool its output into value 3"),
        ({"s1": {"routing": 1}}, "has a routing, and no mixed bank"),
        ({"s1": {"scale": 1}}, "wants its scale to be 20 float32, not 3 float32"),
        ({"s1": {"residual": 5}}, "wants its residual to be 1 x 1 x 20"),
        ({"s1": {"out_height": 2}}, "can't make a height of 2 from 1: kernel 1, stride 1, dilation 1, padding 0"),
        ({"s1": {"pad_left": 1}}, "can't make a width of 1 from 1: kernel 1, stride 1, dilation 1, padding 1"),
        ({"s1": {"pad_top": -1}}, "padding -1"),
        ({"s1": {"out_width": 0}}, "can't make a width of 0"),
        ({"s1": {"normalise": 2}}, "normalises or not"),
        ({"s1": {"normalise": True}}, "normalises at most 4 channels, not 20"),
        ({"s0": {"bank": 0}}, "Step 0 (depthwise) has a bank as bank that is not depthwise"),
        ({"s0": {"producer": 1}}, "has a bank as producer that is depthwise"),
        ({"s0": {"producer": 3}}, "has 8 channels, and its bank wants 20"),
        ({"s0": {"producer": 4}}, "has a producer of 5 channels for 20"),
        ({"s0": {"producer_height": 0}}, "can't make a height of 0 from 6"),
        ({"s0": {"producer_width": 7}}, "can't make a width of 7 from 6"),
        ({"s0": {"producer_height": 5, "out_height": 6, "pad_top": 0}}, "can't make a height of 6 from 5"),
        ({"s2": {"routing": None}}, "Step 2 (conv) has no routing for its bank"),
        ({"s0": {"routing": None}}, "has no routing for its bank"),
        ({"s0": {"routing": 0}}, "wants its routing to be 3 float32, not 288 float32"),
        ({"s0": {"scale": 1}}, "can't have scale 1"),
        ({"s0": {"residual": 2}}, "can't have residual 2"),
        ({"s0": {"pooled": 4, "output": 4}}, "wants its output to be 6 x 6 x 20"),
        ({"s0": {"pooled": 5}}, "wants its pooled to be 20 float32, not 288 float32"),
        ({"s2": {"scale": 1}}, "wants its scale to be 20 float32, not 3 float32"),
        ({"s2": {"output": 0}}, "Step 2 writes value 0 over value 0, which it reads"),
        ({"s2": {"residual": None, "output": 0}}, "Step 2 writes to input 0"),
        ({"s2": {"residual": 2}}, "wants its residual to be 6 x 6 x 8"),
        ({"s2": {"residual": 99}}, "has value 99 as residual"),
        ({"s3": {"residual": 0}}, "Step 3 (activate) has a residual, and can't"),
        ({"s3": {"scale": 6}}, "has a scale, and can't"),
        ({"s3": {"bank": 0}}, "and can't"),
        ({"s3": {"routing": 1}}, "and can't"),
        ({"s3": {"pooled": 4}}, "and can't"),
        ({"s3": {"normalise": True}}, "and can't"),
        ({"s3": {"kind": StepKind.ADD}}, "Step 3 (add) lacks its residual"),
        ({"s3": {"kind": StepKind.MULTIPLY, "residual": 0}}, "has activation 2, and can't"),
        ({"s3": {"kind": StepKind.SCALE, "activation": 0}}, "Step 3 (scale) lacks its scale"),
        ({"s3": {"kind": StepKind.CONVERT, "activation": 0}}, "Step 3 (convert) converts from float32 to the same"),
        ({"s3": {"input": 2, "channels": 20}}, "wants its output to be 6 x 6 x 20"),
        ({"s4": {"output": 7}}, "Step 4 (pool) wants its output to be 8 float32, not 5 float32"),
        ({"s3": {"window_height": 2}}, "Step 3 (activate) has a window of 2 x 0, and can't"),
        ({"s3": {"kind": StepKind.MAX_POOL, "activation": 0}}, "Step 3 (max pool) has windows of 0 x 0, stride"),
        ({"s3": {**POOL, "window_width": 2**31 - 1}}, "has windows of 2 x 2147483647"),
        ({"s3": {**POOL, "window_stride_height": 0}}, "stride 0 and 2: each is 1 to 4096"),
        ({"s3": {**POOL, "out_height": 4}}, "can't make a height of 4 from 6: kernel 2, stride 2"),
        ({"s3": {**POOL, "pad_left": 2}}, "can't make a width of 3 from 6"),
        ({"s3": {**POOL, "pad_top": -1}}, "padding -1"),
        ({"s3": {**POOL, "out_height": 3}}, "Step 3 (max pool) wants its output to be 3 x 3 x 8"),
        ({"s3": {**POOL, "activation": 1}}, "has activation 1, and can't"),
        ({"s3": {**POOL, "residual": 0}}, "has a residual, and can't"),
        ({"s5": {"input": 3, "channels": 20, "bank": 2}}, "Step 5 (conv) wants its output to be 1 x 1 x 20"),
        ({"s5": {"output": 6}}, "wants its output to be 1 x 1 x 5"),
        # What fits by itself, but not in time.
        ({"s1": {"input": 4, "output": 3}}, "Step 1 reads value 4, which nothing has written"),
        ({"s4": {"input": 0}, "s3": {"input": 0}, "s2": {"output": 5}}, None),
        ({"v3": {"offset": 0}}, "Step 0 writes values 2 and 3 to the same memory"),
        ({"v5": {"offset": 0}}, "Step 2 writes value 5 over value 2, which it reads"),
        ({"v5": {"offset": 2944}}, "Step 2 writes value 5 over value 4, which it reads"),
        ({"v4": {"offset": 2880}}, "Step 1 writes value 4 over value 3"),
        ({"v4": {"offset": 0}}, "Step 2 reads value 2, which nothing has written, or something has written over"),
        ({"v4": {"row_by_row": True}, "row_bytes": 4096}, "a value of one row, and its stage doesn't run row by row"),
    ],
)  # fmt: skip
def test_programs_that_could_go_wrong_are_refused(changes, message):
    block = Block()
    spec = changed(block.spec(), **changes)
    if message is None:
        Program(spec, block.banks()).close()
    else:
        assert message in refusal(spec, block.banks())


def in_stages(*stages: Stage, offsets: tuple[int, int, int], sizes: tuple[int, int, int] = (16, 16, 16)) -> ProgramSpec:
    """Three steps that hand a vector on through scratch of all rows of a chunk."""
    scratch = [
        Value(place=Place.SCRATCH, type=FLOAT, shape=(size,), offset=offset)
        for offset, size in zip(offsets, sizes, strict=True)
    ]
    values = [
        Value(place=Place.INPUT, type=FLOAT, shape=(16,)),
        *scratch,
        Value(place=Place.OUTPUT, type=FLOAT, shape=(16,)),
    ]
    steps = [Step(kind=StepKind.ACTIVATE, input=i, output=i + 1, channels=16) for i in range(4)]
    return ProgramSpec(values=values, steps=steps, stages=stages, chunk_bytes=128)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (in_stages(Stage(0, 4, True), offsets=(0, 0, 0)), None),
        (in_stages(Stage(0, 4), offsets=(0, 64, 0)), None),
        (in_stages(Stage(0, 4), offsets=(0, 32, 0)), "Step 1 writes value 2 over value 1, which it reads"),
        (in_stages(Stage(0, 4), offsets=(0, 64, 32)), "Step 2 writes value 3 over value 2, which it reads"),
        (in_stages(Stage(0, 4, True), offsets=(0, 64, 32)), "Step 0 writes value 1 over other rows of value 3"),
        (in_stages(Stage(0, 1), Stage(1, 4, True), offsets=(32, 0, 64)), "Step 1 writes value 2 over value 1"),
    ],
)
def test_memory_may_be_given_on_but_never_while_it_is_needed(spec, message):
    if message:
        assert message in refusal(spec, [])
    else:
        x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
        with Program(spec) as program:
            np.testing.assert_array_equal(program.run([x])[0], x)


def test_rows_never_write_over_other_rows():
    """In a stage that runs row by row, row 0 writes before row 1 reads, so other rows' memory must stay as it is."""
    values = [
        Value(place=Place.INPUT, type=FLOAT, shape=(8,)),
        Value(place=Place.SCRATCH, type=FLOAT, shape=(8,), offset=0),
        Value(place=Place.SCRATCH, type=FLOAT, shape=(1, 1, 8), offset=64),
        Value(place=Place.SCRATCH, type=FLOAT, shape=(8,), offset=16),
        Value(place=Place.OUTPUT, type=FLOAT, shape=(8,)),
    ]
    steps = [Step(kind=StepKind.ACTIVATE, input=i, output=i + 1, channels=8) for i in range(4)]
    stages = [Stage(0, 1), Stage(1, 3, True), Stage(3, 4)]
    spec = ProgramSpec(values=values, steps=steps, stages=stages, chunk_bytes=128)
    assert "Step 2 writes value 3 over other rows of value 1, which its stage reads" in refusal(spec, [])
    together = dataclasses.replace(spec, stages=[Stage(0, 4)])
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    with Program(together) as program:
        np.testing.assert_array_equal(program.run([x])[0], x)


def test_outputs_must_be_written():
    block = Block()
    spec = changed(block.spec(), s5={"output": 5, "out_height": 1})
    assert "wants its output to be" in refusal(spec, block.banks())
    shorter = changed(block.spec(), steps=block.spec().steps[:5], stages=[Stage(0, 5)])
    assert refusal(shorter, block.banks()) == "Nothing writes output 0."


def test_other_versions_are_refused(native):
    head = abi.ProgramSpecStruct(version=abi.VERSION + 1)
    arguments = (
        ctypes.byref(head),
        (abi.ValueStruct * 1)(),
        (abi.StepStruct * 1)(),
        (abi.StageStruct * 1)(),
        (ctypes.c_int64 * 1)(),
    )
    assert native.cc_program_new(*arguments) == -1
    assert f"of version {abi.VERSION + 1}, not {abi.VERSION}" in str(library.last_error())
    head.version, head.size_of_step = abi.VERSION, 1
    assert native.cc_program_new(*arguments) == -1
    assert "other sizes" in str(library.last_error())
    assert native.cc_program_new(*arguments[:-1], None) == -1
    assert "needs a spec, values, steps, stages and banks" in str(library.last_error())


def test_too_little_memory_to_compute_is_an_error():
    block = Block()
    with Program(changed(block.spec(), **TOO_MUCH), block.banks()) as program:
        if promises_any_memory():
            pytest.skip("this system promises any memory")
        with pytest.raises(ConfigurationError, match="There is no memory to compute 2 rows"):
            program.run(block.inputs(2))


def test_too_many_channels_of_pixels():
    block = Block()
    with pytest.raises(ConfigurationError, match="at most 4 channels, and mean has 5"):
        Program(changed(block.spec(), mean=(0.0,) * 5), block.banks())


def test_scale_is_for_kernels_of_one_number_only():
    values = [
        Value(place=Place.INPUT, type=FLOAT, shape=(8, 8, 3)),
        Value(place=Place.INPUT, type=FLOAT, shape=(3,), number=1),
        Value(place=Place.OUTPUT, type=FLOAT, shape=(6, 6, 4)),
    ]
    step = Step(
        kind=StepKind.CONV, input=0, output=2, scale=1, bank=0, height=8, width=8, channels=3, out_height=6, out_width=6
    )
    spec = ProgramSpec(values=values, steps=[step], stages=[Stage(0, 1)])
    with Bank(np.zeros((1, 3, 3, 3, 4))) as bank:
        assert "can't have scale 1: its bank is not of 1 x 1" in refusal(spec, [bank])


def test_numbers_are_of_this_many_experts():
    block = Block()
    spec = changed(block.spec(), v1={"shape": (EXPERTS + 1,)})
    assert "wants its routing to be 3 float32, not 4 float32" in refusal(spec, block.banks())
