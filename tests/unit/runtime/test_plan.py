from dataclasses import replace
from typing import Any

import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.devices import Machine, NativeKernels
from condconv_serve.runtime.plan import EngineOptions, make_plan

PLAIN = Machine(cores=4, cpu_bfloat16=False, openvino=False)
RICH = Machine(cores=6, cpu_bfloat16=True, openvino=True)
GPUS = Machine(
    cores=8,
    cpu_bfloat16=True,
    openvino=True,
    accelerators=(("gpu", "GPU:0"), ("gpu", "GPU:1")),
    accelerator_bfloat16=True,
)
NATIVE = replace(RICH, native=NativeKernels(isa="avx512_bf16", bfloat16=True))
AVX2 = Machine(cores=2, cpu_bfloat16=False, openvino=True, native=NativeKernels(isa="avx2"))
MISSING = replace(PLAIN, native=NativeKernels(problem="libcondconv.so is of another version"))


@pytest.mark.parametrize(
    ("machine", "asked", "expected"),
    [
        (PLAIN, {}, ("cpu", "float32", "tensorflow", 4, 4)),
        (RICH, {}, ("cpu", "bfloat16", "tensorflow", 6, 8)),
        (RICH, {"engine": "openvino"}, ("cpu", "bfloat16", "openvino", 6, 8)),
        (RICH, {"precision": "float32"}, ("cpu", "float32", "openvino", 6, 4)),
        (RICH, {"engine": "tensorflow", "threads_per_stream": 2}, ("cpu", "bfloat16", "tensorflow", 3, 8)),
        (RICH, {"threads_per_stream": 99}, ("cpu", "bfloat16", "tensorflow", 1, 8)),
        (RICH, {"streams": 2, "max_batch_size": 16}, ("cpu", "bfloat16", "tensorflow", 2, 16)),
        (AVX2, {}, ("cpu", "float32", "tensorflow", 2, 8)),
        (AVX2, {"native": "off"}, ("cpu", "float32", "openvino", 2, 4)),
        (AVX2, {"engine": "openvino"}, ("cpu", "float32", "openvino", 2, 4)),
        (AVX2, {"native": "on", "max_batch_size": 3}, ("cpu", "float32", "tensorflow", 2, 3)),
        (NATIVE, {}, ("cpu", "bfloat16", "tensorflow", 6, 8)),
        (NATIVE, {"precision": "float32"}, ("cpu", "float32", "tensorflow", 6, 8)),
        (GPUS, {}, ("gpu", "bfloat16", "tensorflow", 2, 64)),
        (GPUS, {"device": "cpu"}, ("cpu", "bfloat16", "tensorflow", 8, 8)),
        (GPUS, {"device": "cpu", "precision": "float32"}, ("cpu", "float32", "openvino", 8, 4)),
    ],
)
def test_choices(machine: Machine, asked: dict[str, Any], expected: tuple[Any, ...]) -> None:
    plan = make_plan(machine, EngineOptions(**asked))
    assert (plan.device, plan.precision, plan.engine, plan.streams, plan.max_batch_size) == expected


@pytest.mark.parametrize(
    ("machine", "asked", "why"),
    [
        (PLAIN, {}, "openvino is not installed"),
        (RICH, {}, "in bfloat16 openvino needs twice the memory and is faster in full batches only"),
        (RICH, {"precision": "float32"}, "it is installed, and faster in float32 on a CPU"),
        (RICH, {"engine": "openvino"}, "it was asked for"),
        (GPUS, {}, "the only engine that computes on a gpu"),
        (AVX2, {}, "it hosts the native kernels"),
        (AVX2, {"native": "off"}, "it is installed, and faster in float32 on a CPU"),
        (MISSING, {}, "openvino is not installed"),
    ],
)
def test_a_plan_says_why_it_has_its_engine(machine, asked, why):
    assert make_plan(machine, EngineOptions(**asked)).reason == why


@pytest.mark.parametrize(
    ("machine", "asked", "native", "state", "why"),
    [
        (AVX2, {}, "auto", "used", "they can be used here"),
        (AVX2, {"engine": "tensorflow"}, "auto", "used", "they can be used here"),
        (AVX2, {"native": "on"}, "on", "used", "they were asked for"),
        (AVX2, {"native": "off"}, "off", "off", "they were switched off"),
        (AVX2, {"engine": "openvino"}, "off", "off", "they compute in TensorFlow, not in openvino"),
        (GPUS, {}, "off", "off", "they compute on a CPU, not on a gpu"),
        (MISSING, {}, "off", "unavailable", "libcondconv.so is of another version"),
        (replace(NATIVE, native=NativeKernels(isa="avx512")), {}, "off", "unavailable", "no bfloat16 with avx512"),
    ],
)
def test_a_plan_says_what_native_kernels_do(machine, asked, native, state, why):
    plan = make_plan(machine, EngineOptions(**asked))
    assert (plan.native, plan.native_use.state) == (native, state)
    assert why in plan.native_use.reason
    assert plan.native_use.isa == (machine.native.isa if state == "used" else None)


@pytest.mark.parametrize(
    ("machine", "asked", "says"),
    [
        (PLAIN, {"device": "gpu"}, "there is cpu"),
        (PLAIN, {"precision": "bfloat16"}, "no native bfloat16; choose float32 or auto"),
        (PLAIN, {"precision": "int4"}, "choose auto, float32, bfloat16"),
        (PLAIN, {"engine": "openvino"}, "not installed"),
        (PLAIN, {"engine": "onnx"}, "choose auto, tensorflow, openvino"),
        (GPUS, {"engine": "openvino"}, "on a CPU, not on a gpu"),
        (AVX2, {"native": "yes"}, "choose auto, on, off"),
        (AVX2, {"native": "on", "engine": "openvino"}, "compute in TensorFlow, not in openvino"),
        (GPUS, {"native": "on"}, "on a CPU, not on a gpu"),
        (MISSING, {"native": "on"}, "another version. Choose native=auto or off"),
        (
            Machine(cores=2, cpu_bfloat16=True, openvino=False, native=NativeKernels(isa="avx2")),
            {"native": "on", "precision": "bfloat16"},
            "no bfloat16 with avx2",
        ),
    ],
)
def test_impossible_settings_say_what_is_possible(machine: Machine, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make_plan(machine, EngineOptions(**asked))
