"""TensorFlow's operation: its inputs are checked, it keeps its program, and its streams don't mix."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.kernels.abi import Place, StepKind, ValueType
from condconv_serve.runtime.kernels.program import Program, ProgramSpec, Stage, Step, Value, alive
from tests.unit.runtime.native_kernels.blocks import EXPERTS, OUTPUTS, TOO_MUCH, Block, promises_any_memory

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.usefixtures("native")]

BLOCK = Block()


@pytest.fixture(scope="module")
def tf() -> Any:
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    import tensorflow

    return tensorflow


@pytest.fixture(autouse=True, scope="module")
def nothing_stays(native) -> Iterator[None]:
    gc.collect()
    before = alive()
    yield
    gc.collect()
    assert alive() == before


class Hosted:
    """A program as the only operation of a graph, whose inputs may have any shape."""

    def __init__(self, tf: Any, program: Program, types: Sequence[str] = ("float32", "float32")) -> None:
        from condconv_serve.runtime.kernels.operation import run_in_graph

        self.graph = tf.Graph()
        with self.graph.as_default():
            self.inputs = [tf.compat.v1.placeholder(name) for name in types]
            self.outputs = run_in_graph(program, self.inputs)
        self.session = tf.compat.v1.Session(graph=self.graph)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        return self.session.run(self.outputs, dict(zip(self.inputs, arrays, strict=True)))

    def close(self) -> None:
        self.session.close()


@pytest.fixture
def hosted(tf) -> Iterator[Hosted]:
    with BLOCK.program() as program:
        hosted = Hosted(tf, program)
        yield hosted
        hosted.close()


def test_graph_computes_what_the_program_does(tf):
    with BLOCK.program() as program:
        hosted = Hosted(tf, program)
        for rows in (1, 3, 9):
            for found, wanted in zip(hosted(*BLOCK.inputs(rows)), program.run(BLOCK.inputs(rows)), strict=True):
                np.testing.assert_array_equal(found, wanted)
        hosted.close()


def test_outputs_have_types_and_shapes_in_the_graph(hosted):
    assert [(output.dtype.name, output.shape.as_list()) for output in hosted.outputs] == [
        ("float32", [None, OUTPUTS]),
        ("float32", [None, BLOCK.channels]),
    ]


def test_no_rows_give_no_rows(hosted):
    assert [output.shape for output in hosted(*BLOCK.inputs(0))] == [(0, OUTPUTS), (0, BLOCK.channels)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((2, 6, 6, 7), (2, 3)),
            "input 0 is float32 [2, 6, 6, 7], and float32 [batch, 6, 6, 8] is needed",
        ),
        (((2, 6, 6), (2, 3)), "input 0 is float32 [2, 6, 6], and float32 [batch, 6, 6, 8] is needed"),
        (((), (2, 3)), "input 0 is float32 [], and float32 [batch, 6, 6, 8] is needed"),
        (((2, 6, 6, 8, 1), (2, 3)), "input 0 is float32 [2, 6, 6, 8, 1]"),
        (((2, 6, 6, 8), (3, 3)), "input 1 is float32 [3, 3], and float32 [2, 3] is needed"),
        (((2, 6, 6, 8), (2, 0)), "input 1 is float32 [2, 0], and float32 [2, 3] is needed"),
        (((0, 6, 6, 8), (2, 3)), "input 1 is float32 [2, 3], and float32 [0, 3] is needed"),
        (((2, 6, 6, 8), (1,) * 12), "input 1 is float32 [1, 1, 1, 1, 1, 1, 1, 1], and float32 [2, 3] is needed"),
    ],
)
def test_inputs_of_other_shapes_are_refused(tf, hosted, shapes, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        hosted(*(np.zeros(shape, np.float32) for shape in shapes))
    assert message in str(caught.value)
    assert len(hosted(*BLOCK.inputs(2))[0]) == 2  # and it still computes


def test_too_little_memory_is_exhausted(tf):
    if promises_any_memory():
        pytest.skip("this system promises any memory")
    with Program(dataclasses.replace(BLOCK.spec(), **TOO_MUCH), BLOCK.banks()) as program:
        hosted = Hosted(tf, program)
        with pytest.raises(tf.errors.ResourceExhaustedError, match="There is no memory to compute 2 rows"):
            hosted(*BLOCK.inputs(2))
        hosted.close()


def make_op(tf, program: int, inputs: Sequence[Any], types: Sequence[str]) -> Any:
    """The operation as a graph may have it that something else has made."""
    value = tf.compat.v1.AttrValue

    def type_list(names: Sequence[str]) -> Any:
        return value(list=value.ListValue(type=[tf.as_dtype(name).as_datatype_enum for name in names]))

    attributes = {
        "program": value(i=program),
        "Tin": type_list([x.dtype.name for x in inputs]),
        "Tout": type_list(types),
    }
    graph = tf.compat.v1.get_default_graph()
    return graph.create_op("CondconvProgram", list(inputs), [tf.as_dtype(name) for name in types], attrs=attributes)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (
            ("float32",),
            ("float32", "float32"),
            "has 1 inputs and 2 outputs, and its program has 2 inputs and 2 outputs",
        ),
        (("float32",) * 3, ("float32", "float32"), "has 3 inputs and 2 outputs"),
        (("float32", "float32"), ("float32",), "has 2 inputs and 1 outputs"),
        (("float64", "float32"), ("float32", "float32"), "input 0 is type 2 [2, 6, 6, 8], and float32 [batch"),
        (("float32", "uint8"), ("float32", "float32"), "input 1 is uint8 [2, 3], and float32 [2, 3] is needed"),
        (("float32", "float32"), ("float32", "uint8"), "output 1 is of another type, and float32 [batch, 8] is needed"),
    ],
)
def test_graphs_that_dont_fit_their_program_are_refused(tf, inputs, outputs, message):
    from condconv_serve.runtime.kernels.operation import register

    register()
    shapes = [(2, *BLOCK.inputs(1)[0].shape[1:]), (2, EXPERTS), (2, 1)]
    with BLOCK.program() as program, tf.Graph().as_default() as graph:
        given = [tf.zeros(shape, name) for shape, name in zip(shapes, inputs, strict=False)]
        placeholders = [tf.compat.v1.placeholder_with_default(x, None) for x in given]
        op = make_op(tf, program.number, placeholders, outputs)
        with tf.compat.v1.Session(graph=graph) as session, pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(op.outputs)
    assert message in str(caught.value)


@pytest.mark.parametrize("number", [-1, 0, 7, 2**40, 2**63 - 1])
def test_unknown_programs_are_refused(tf, number):
    from condconv_serve.runtime.kernels.operation import register

    register()
    with tf.Graph().as_default() as graph:
        op = make_op(tf, number, [tf.compat.v1.placeholder_with_default(tf.zeros((1, 1)), None)], ["float32"])
        with (
            tf.compat.v1.Session(graph=graph) as session,
            pytest.raises(tf.errors.InvalidArgumentError, match="no such program in this process, or it was freed"),
        ):
            session.run(op.outputs)


def test_sessions_keep_their_program_and_new_ones_need_it_open(tf):
    before = alive()
    program = BLOCK.program()
    hosted = Hosted(tf, program)
    wanted = hosted(*BLOCK.inputs(2))
    program.close()
    assert alive()[1] == before[1] + 1
    np.testing.assert_array_equal(hosted(*BLOCK.inputs(2))[0], wanted[0])
    with (
        tf.compat.v1.Session(graph=hosted.graph) as other,
        pytest.raises(tf.errors.InvalidArgumentError, match="or it was freed"),
    ):
        other.run(hosted.outputs, dict(zip(hosted.inputs, BLOCK.inputs(2), strict=True)))
    hosted.close()
    del hosted
    gc.collect()
    assert alive() == before


def test_all_types_travel(tf):
    values = [
        Value(place=Place.INPUT, type=ValueType.FLOAT32, shape=(4,)),
        Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=(4,)),
    ]
    step = Step(kind=StepKind.ACTIVATE, input=0, output=1, channels=4)
    with Program(ProgramSpec(values=values, steps=[step], stages=[Stage(0, 1)])) as program:
        hosted = Hosted(tf, program, ["float32"])
        np.testing.assert_array_equal(hosted(np.eye(4, dtype=np.float32))[0], np.eye(4))
        hosted.close()


def test_streams_with_mixed_batches_compute_what_they_do_alone(tf, hosted):
    batches = {rows: BLOCK.inputs(rows) for rows in (1, 2, 4, 5, 8, 11)}
    wanted = {rows: hosted(*inputs) for rows, inputs in batches.items()}
    wrong: list[str] = []

    def stream(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(150):
            rows = int(rng.choice(list(batches)))
            for found, want in zip(hosted(*batches[rows]), wanted[rows], strict=True):
                if not np.array_equal(found, want):
                    wrong.append(f"stream {number}, {rows} rows")

    library.use_threads(2)
    try:
        streams = [threading.Thread(target=stream, args=(i,)) for i in range(2)]
        for one in streams:
            one.start()
        for one in streams:
            one.join()
    finally:
        library.use_threads(1)
    assert wrong == []


def test_functions_host_programs_too(tf):
    from condconv_serve.runtime.kernels.operation import run_in_graph

    with BLOCK.program() as program:
        signature = [tf.TensorSpec((None, *x.shape[1:])) for x in BLOCK.inputs(1)]
        function = tf.function(
            lambda images, routing: run_in_graph(program, [images, routing]), input_signature=signature
        )
        found = function(*BLOCK.inputs(3))
        for one, wanted in zip(found, program.run(BLOCK.inputs(3)), strict=True):
            np.testing.assert_array_equal(one.numpy(), wanted)
    del function
