import sys

import pytest

from condconv_serve.runtime import devices
from condconv_serve.runtime.devices import NativeKernels, detect_machine
from condconv_serve.runtime.kernels import library


@pytest.fixture(autouse=True)
def _no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


def test_a_machine_without_the_native_library_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> str:
        raise library.NativeUnavailable("libcondconv.so is of version 7, and version 1 is needed")

    monkeypatch.setattr(library, "isa", unavailable)
    found = detect_machine(look_for_accelerators=False).native
    assert found == NativeKernels(problem="libcondconv.so is of version 7, and version 1 is needed")


def test_a_machine_has_what_the_native_library_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "isa", lambda: "avx512_bf16")
    monkeypatch.setattr(library, "has_bfloat16", lambda: True)
    assert devices.detect_machine(look_for_accelerators=False).native == NativeKernels(
        isa="avx512_bf16", bfloat16=True, problem=""
    )
