"""What this machine can compute with: cores, number formats, accelerators, optional engines."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from condconv_serve.machine.accelerators import has_accelerators
from condconv_serve.machine.cores import available_cores
from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.tensorflow_import import import_tensorflow

Device = Literal["cpu", "gpu", "tpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeKernels:
    """What the native kernels can do here.

    Attributes:
        isa: the instruction set that they use, such as "avx2"; None: they can't be used.
        bfloat16: whether they multiply bfloat16.
        problem: why they can't be used, in one line without a full stop.
    """

    isa: str | None = None
    bfloat16: bool = False
    problem: str = "they were not looked for"


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute on.

    Attributes:
        cores: physical cores that this process may use.
        cpu_bfloat16: whether the CPU multiplies bfloat16 natively.
        openvino: whether OpenVINO is installed.
        accelerators: the kind of each device and TensorFlow's name of it, such as ("gpu", "GPU:0").
        accelerator_bfloat16: whether all of them multiply bfloat16 natively.
        native: what the native kernels can do.
    """

    cores: int
    cpu_bfloat16: bool
    openvino: bool
    accelerators: tuple[tuple[Device, str], ...] = ()
    accelerator_bfloat16: bool = False
    native: NativeKernels = field(default_factory=NativeKernels)


def detect_machine(*, look_for_accelerators: bool) -> Machine:
    """Look at this machine.

    Args:
        look_for_accelerators: ask TensorFlow for accelerators even if no device file hints at one. This imports
            TensorFlow, which takes seconds.
    """
    accelerators: tuple[tuple[Device, str], ...] = ()
    bfloat16 = False
    if look_for_accelerators or has_accelerators():
        accelerators, bfloat16 = _accelerators()
    return Machine(
        cores=available_cores(),
        cpu_bfloat16=_cpu_has_bfloat16(),
        openvino=importlib.util.find_spec("openvino") is not None,
        accelerators=accelerators,
        accelerator_bfloat16=bfloat16,
        native=_native_kernels(),
    )


def _native_kernels() -> NativeKernels:
    """Load the native kernels, which needs no TensorFlow."""
    try:
        return NativeKernels(isa=library.isa(), bfloat16=library.has_bfloat16(), problem="")
    except library.NativeUnavailable as error:
        return NativeKernels(problem=str(error))


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; if not, bfloat16 would be slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _accelerators() -> tuple[tuple[tuple[Device, str], ...], bool]:
    import_tensorflow()
    import tensorflow as tf

    found: list[tuple[Device, str]] = []
    bfloat16 = True
    kinds: tuple[Device, ...] = ("gpu", "tpu")
    for kind in kinds:
        for number, device in enumerate(tf.config.list_physical_devices(kind.upper())):
            found.append((kind, f"{kind.upper()}:{number}"))
            if kind == "gpu":
                # Ampere, compute capability 8, is the first to multiply bfloat16 natively.
                capability = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
                bfloat16 = bfloat16 and capability >= (8, 0)
    return tuple(found), bfloat16 and bool(found)
