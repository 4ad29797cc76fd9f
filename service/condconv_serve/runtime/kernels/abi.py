"""The native library's interface as ctypes sees it: the numbers and structs of `csrc/condconv.h`, field for field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from typing import Any

VERSION = 2
"""Of the interface: CC_VERSION. A library of another version isn't used."""

MAX_NORMALISED_CHANNELS = 4
"""Pixels have at most so many channels."""

MAX_EXPERTS = 1 << 10
"""A bank has at most so many."""

MAX_TAPS = 1 << 16
"""A bank's kernel has at most so many rows times columns."""


class ValueType(IntEnum):
    """What a value's numbers are."""

    UINT8 = 0
    FLOAT32 = 1
    BFLOAT16 = 2


class Activation(IntEnum):
    """What a step does with its result, number by number."""

    LINEAR = 0
    RELU = 1
    RELU6 = 2
    SWISH = 3
    HARD_SWISH = 4
    SIGMOID = 5
    HARD_SIGMOID = 6


class BankType(IntEnum):
    """How a bank holds its numbers: half floats only where that loses nothing."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2


class StepKind(IntEnum):
    """What a step computes."""

    CONV = 0
    DEPTHWISE = 1
    POOL = 2
    SCALE = 3
    ADD = 4
    ACTIVATE = 5
    CONVERT = 6
    MULTIPLY = 7
    MAX_POOL = 8


class Place(IntEnum):
    """Where a value is."""

    SCRATCH = 0
    INPUT = 1
    OUTPUT = 2


class BankSpecStruct(ctypes.Structure):
    """`cc_bank_spec`."""

    _fields_ = [
        (name, c_int32)
        for name in (
            *("depthwise", "num_experts", "mixed", "type", "in_channels", "out_channels"),
            *("kernel_height", "kernel_width", "stride_height", "stride_width", "dilation_height", "dilation_width"),
        )
    ]


class StepStruct(ctypes.Structure):
    """`cc_step`."""

    _fields_ = [
        (name, c_int32)
        for name in (
            *("kind", "input", "output", "routing", "scale", "residual", "pooled", "bank", "producer"),
            *("activation", "producer_activation", "normalise", "height", "width", "channels", "pad_top", "pad_left"),
            *("window_height", "window_width", "window_stride_height", "window_stride_width"),
            *("out_height", "out_width", "producer_pad_top", "producer_pad_left", "producer_height", "producer_width"),
        )
    ]


class ValueStruct(ctypes.Structure):
    """`cc_value`."""

    _fields_ = [
        *((name, c_int32) for name in ("place", "number", "type", "rank")),
        ("shape", c_int32 * 3),
        ("row_by_row", c_int32),
        ("offset", c_int64),
    ]


class StageStruct(ctypes.Structure):
    """`cc_stage`."""

    _fields_ = [(name, c_int32) for name in ("first", "last", "row_by_row")]


class ProgramSpecStruct(ctypes.Structure):
    """`cc_program_spec`."""

    _fields_ = [
        *((name, c_int32) for name in ("version", "size_of_step", "size_of_value")),
        *((name, c_int32) for name in ("values", "steps", "stages", "banks", "inputs", "outputs", "chunk")),
        ("row_bytes", c_int64),
        ("chunk_bytes", c_int64),
        ("mean", c_float * MAX_NORMALISED_CHANNELS),
        ("scale", c_float * MAX_NORMALISED_CHANNELS),
    ]


STRUCTS: tuple[type[ctypes.Structure], ...] = (
    BankSpecStruct,
    StepStruct,
    ValueStruct,
    StageStruct,
    ProgramSpecStruct,
)
"""In the order in which `cc_struct_size` numbers them."""

FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cc_version": (c_int32, ()),
    "cc_struct_size": (c_int32, (c_int32,)),
    "cc_error": (c_char_p, ()),
    "cc_isa": (c_char_p, ()),
    "cc_isas": (c_char_p, ()),
    "cc_set_isa": (c_int32, (c_char_p,)),
    "cc_has_bfloat16": (c_int32, ()),
    "cc_register": (c_int32, ()),
    "cc_registered": (c_int32, ()),
    "cc_set_threads": (None, (c_int32,)),
    "cc_set_least_work": (None, (c_int64,)),
    "cc_helped": (c_int64, ()),
    "cc_bank_new": (c_int64, (POINTER(BankSpecStruct), c_void_p, c_void_p, c_void_p, c_void_p)),
    "cc_bank_release": (None, (c_int64,)),
    "cc_bank_bytes": (c_int64, (c_int64,)),
    "cc_banks_alive": (c_int64, ()),
    "cc_program_new": (
        c_int64,
        (POINTER(ProgramSpecStruct), POINTER(ValueStruct), POINTER(StepStruct), POINTER(StageStruct), POINTER(c_int64)),
    ),
    "cc_program_release": (None, (c_int64,)),
    "cc_programs_alive": (c_int64, ()),
    "cc_program_run": (c_int32, (c_int64, c_int32, POINTER(c_void_p), POINTER(c_void_p))),
}


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes what each function of the library takes and gives.

    Raises:
        AttributeError: the library lacks one of them.
    """
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
