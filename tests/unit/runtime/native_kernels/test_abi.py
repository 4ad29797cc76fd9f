"""The Python side of the native library's interface says the same as its header, and as the library itself."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from condconv_serve.runtime.kernels import abi

HEADER = re.sub(r"//.*", "", (Path(abi.__file__).parent / "csrc" / "condconv.h").read_text())
ENUMS = {
    "CC_STEP_": abi.StepKind,
    "CC_BANK_": abi.BankType,
}
NAMED = {**{name: abi.ValueType for name in ("UINT8", "FLOAT32", "BFLOAT16")}, **{p.name: abi.Place for p in abi.Place}}


def declared_numbers() -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"\b(CC_[A-Z0-9_]+) = (\d+)", HEADER)}


def test_every_number_of_the_header_has_its_member():
    for name, number in declared_numbers().items():
        prefix = next((p for p in ENUMS if name.startswith(p)), "CC_")
        member = name.removeprefix(prefix)
        if name in ("CC_ACTIVATIONS", "CC_STEPS"):
            assert number == len(abi.Activation if name == "CC_ACTIVATIONS" else abi.StepKind)
            continue
        enum = ENUMS.get(prefix) or NAMED.get(member, abi.Activation)
        assert enum[member] == number, name


def test_no_member_is_missing_from_the_header():
    members = [m for e in (abi.ValueType, abi.Activation, abi.BankType, abi.StepKind, abi.Place) for m in e]
    assert len(declared_numbers()) == len(members) + 2


def test_versions_agree():
    assert int(re.search(r"#define CC_VERSION (\d+)", HEADER).group(1)) == abi.VERSION


@pytest.mark.parametrize("struct", abi.STRUCTS, ids=lambda struct: struct.__name__)
def test_structs_have_the_headers_fields_in_its_order(struct):
    name = "cc_" + re.sub(r"(?<!^)(?=[A-Z])", "_", struct.__name__.removesuffix("Struct")).lower()
    body = re.search(r"typedef struct \{([^}]*)\} " + name + ";", HEADER).group(1)
    types = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
    declared = []
    for type_name, names in re.findall(r"(int32_t|int64_t|float)\s+([^;]+);", body):
        for field in names.replace("\n", " ").split(","):
            field, length = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*", field).groups()
            declared.append((field, types[type_name] * int(length) if length else types[type_name]))
    assert [(field, kind) for field, kind, *_ in struct._fields_] == declared


@pytest.mark.parametrize("number", range(len(abi.STRUCTS)))
def test_structs_have_the_librarys_sizes(native, number):
    assert native.cc_struct_size(number) == ctypes.sizeof(abi.STRUCTS[number])


def test_there_are_no_more_structs(native):
    assert native.cc_struct_size(len(abi.STRUCTS)) == native.cc_struct_size(-1) == 0


def test_every_function_of_the_header_is_declared():
    names = set(re.findall(r"CC_API [\w\s\*]*?\b(cc_\w+)\(", HEADER))
    assert names == set(abi.FUNCTIONS)
