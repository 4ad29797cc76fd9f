"""Banks of weights: what is refused and in which words, and that they live as long as they are used."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import abi, library
from condconv_serve.runtime.kernels.abi import BankType
from condconv_serve.runtime.kernels.program import Bank, BankOptions, Program, alive
from tests.unit.runtime.native_kernels.blocks import Block

pytestmark = pytest.mark.usefixtures("native")

GOOD = {
    "depthwise": 0, "num_experts": 2, "mixed": 1, "type": 0, "in_channels": 3, "out_channels": 5,
    "kernel_height": 3, "kernel_width": 3, "stride_height": 1, "stride_width": 1, "dilation_height": 1,
    "dilation_width": 1,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def nothing_stays(native):
    gc.collect()
    before = alive()
    yield
    gc.collect()
    assert alive() == before


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depthwise": 2}, "depthwise and mixed are 0 or 1"),
        ({"mixed": -1}, "depthwise and mixed are 0 or 1"),
        ({"num_experts": 0}, "1 to 1024 experts, not 0"),
        ({"num_experts": abi.MAX_EXPERTS + 1}, "1 to 1024 experts, not 1025"),
        ({"kernel_width": abi.MAX_TAPS + 1}, "1 to 65536 columns in its kernel, not 65537"),
        ({"in_channels": -3}, "input channels, not -3"),
        ({"out_channels": 0}, "output channels, not 0"),
        ({"kernel_height": 0}, "rows in its kernel, not 0"),
        ({"kernel_width": 2**31 - 1}, "columns in its kernel"),
        ({"kernel_width": 2**16, "kernel_height": 2**16}, "kernel of 65536 x 65536 is too large"),
        ({"stride_height": 0}, "rows per stride, not 0"),
        ({"stride_width": -(2**31)}, "columns per stride, not -2147483648"),
        ({"dilation_height": 0}, "rows per dilation, not 0"),
        ({"dilation_width": 0}, "columns per dilation, not 0"),
        ({"dilation_height": 2**16, "kernel_height": 2**16, "kernel_width": 1}, "too wide with dilations"),
        ({"mixed": 0}, "isn't mixed has 1 expert, not 2"),
        ({"depthwise": 1}, "as many output channels as input channels, not 5 and 3"),
        ({"type": 3}, "no bank type 3"),
        ({"type": -1}, "no bank type -1"),
        ({"depthwise": 1, "out_channels": 3, "type": 1}, "Depthwise banks are float32"),
        ({"mixed": 0, "num_experts": 1, "type": 1}, "Only mixed banks hold half floats"),
        ({"in_channels": 2**24, "out_channels": 2**24, "num_experts": 1000}, "is too large"),
        ({"in_channels": 2**24, "kernel_height": 256, "kernel_width": 256}, "numbers per output is too large"),
    ],
)
def test_fields_that_fit_nothing_are_refused(native, fields, message):
    spec = abi.BankSpecStruct(**GOOD | fields)
    experts = zeros(16)  # nothing is read before all is checked
    assert native.cc_bank_new(ctypes.byref(spec), experts.ctypes.data, None, None, None) == -1
    assert message in str(library.last_error())


def test_spec_and_experts_are_needed(native):
    spec = abi.BankSpecStruct(**GOOD)
    assert native.cc_bank_new(None, zeros(1).ctypes.data, None, None, None) == -1
    assert native.cc_bank_new(ctypes.byref(spec), None, None, None, None) == -1
    assert "needs a spec and experts" in str(library.last_error())


def test_bfloat16_needs_an_instruction_set_that_multiplies_it():
    before = library.isa()
    try:
        for name in library.isas():
            library.use_isa(name)
            if not library.has_bfloat16():
                with pytest.raises(ConfigurationError, match=f"instruction set {name} multiplies no bfloat16"):
                    Bank(zeros(1, 1, 1, 4, 4), BankOptions(type=BankType.BFLOAT16))
        assert not library.has_bfloat16()  # the last one: there is always a set without
    finally:
        library.use_isa(before)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"experts": zeros(3, 3)}, "4 or 5 dimensions, not 2"),
        ({"experts": zeros(1, 1, 1, 3, 5), "factor": zeros(4)}, r"factor has the shape \(4,\), and \(5,\) is needed"),
        ({"experts": zeros(1, 1, 1, 3, 5), "bias": zeros(5, 1)}, r"bias has the shape \(5, 1\)"),
        ({"experts": zeros(2, 3, 3, 5), "expert_bias": zeros(5)}, r"expert_bias .* \(2, 5\) is needed"),
        ({"experts": zeros(1, 1, 1, 3, 5), "expert_bias": zeros(1, 5)}, "Only mixed banks have a bias per expert"),
        ({"experts": zeros(1, 1, 1, 0, 5)}, "input channels, not 0"),
        ({"experts": zeros(0, 1, 1, 3, 5)}, "experts, not 0"),
    ],
)
def test_arrays_that_fit_nothing_are_refused(arrays, message):
    with pytest.raises(ConfigurationError, match=message):
        Bank(**arrays)


def test_any_numbers_will_do():
    experts = np.arange(2 * 4 * 6).reshape(2, 1, 1, 4, 6)[..., ::2]  # integers, and not in one piece
    with Bank(experts, BankOptions(mixed=True)) as bank:
        assert bank.nbytes > 0


def test_half_floats_take_half_the_memory():
    experts = zeros(8, 1, 1, 64, 64)
    with (
        Bank(experts, BankOptions(mixed=True)) as whole,
        Bank(experts, BankOptions(mixed=True, type=BankType.FLOAT16)) as half,
    ):
        assert half.nbytes * 2 == whole.nbytes >= experts.nbytes


def test_closing_twice_frees_once():
    banks, _ = alive()
    bank = Bank(zeros(1, 1, 1, 3, 5))
    other = Bank(zeros(1, 1, 1, 3, 5))
    assert alive()[0] == banks + 2
    bank.close()
    bank.close()
    assert alive()[0] == banks + 1
    assert bank.nbytes == 0
    other.close()


def test_collected_banks_are_freed():
    banks, _ = alive()
    Bank(zeros(1, 1, 1, 3, 5))
    gc.collect()
    assert alive()[0] == banks


def test_old_numbers_find_nothing(native):
    bank = Bank(zeros(1, 1, 1, 3, 5))
    bank.close()
    with Bank(zeros(1, 1, 1, 3, 5)) as next_one:
        assert next_one.number != bank.number
        assert native.cc_bank_bytes(bank.number) == -1
        native.cc_bank_release(bank.number)
        assert next_one.nbytes > 0


@pytest.mark.parametrize("number", [-1, 0, 1, 2**31, 2**32, 2**62, -(2**63), 2**63 - 1])
def test_numbers_of_no_bank_and_no_program(native, number):
    native.cc_bank_release(number)
    native.cc_program_release(number)
    assert native.cc_bank_bytes(number) == -1
    assert native.cc_program_run(number, 0, (ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)()) == -1
    assert "no such program" in str(library.last_error())


def test_programs_keep_their_banks():
    banks, programs = alive()
    block = Block()
    made = block.banks()
    program = Program(block.spec(), made)
    for bank in made:
        bank.close()
    assert alive() == (banks + len(made), programs + 1)
    program.close()
    assert alive() == (banks, programs)


def test_closed_bank_fits_no_program():
    block = Block()
    banks = block.banks()
    banks[3].close()
    with pytest.raises(ConfigurationError, match="Bank 3 of the program is none, or was freed"):
        Program(block.spec(), banks)


def test_refused_programs_keep_nothing():
    block = Block()
    banks = block.banks()
    before = alive()[0]
    with pytest.raises(ConfigurationError):
        Program(block.spec(chunk=0), banks)
    with pytest.raises(ConfigurationError):
        Program(block.spec(), banks[:2])
    assert alive()[0] == before


def test_numbers_stay_right_with_many_banks():
    banks = [Bank(zeros(1, 1, 1, 1, 1)) for _ in range(700)]
    assert len({bank.number for bank in banks}) == 700
    for bank in banks[::2]:
        bank.close()
    more = [Bank(zeros(1, 1, 1, 1, 1)) for _ in range(350)]
    assert len({bank.number for bank in banks + more}) == 1050


def test_too_little_memory_is_an_error_and_no_crash():
    script = """
        import resource
        import numpy as np
        from condconv_serve.errors import ConfigurationError
        from condconv_serve.runtime.kernels.program import Bank, BankOptions, alive

        experts = np.zeros((4, 1, 1, 4096, 4096), np.float32)  # 256 MiB, and not as many are left
        alive()
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
        try:
            Bank(experts, BankOptions(mixed=True))
        except ConfigurationError as error:
            print(error, alive())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.stdout == "There is no memory for a bank of 4 experts, 1 x 1 x 4096 x 4096. (0, 0)\n", done.stderr
