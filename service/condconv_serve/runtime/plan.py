"""Decides how models run: device, precision, engine, streams and batch size. One pure function, easy to test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.devices import Device, Machine

Precision = Literal["float32", "bfloat16"]
EngineName = Literal["tensorflow", "openvino"]

# The number of rows per batch at which a row costs least. On a CPU the mixed kernels and the activations of one stream
# must still fit into its core's cache; an accelerator needs many rows to be busy.
BEST_BATCH_SIZE: dict[tuple[Device, Precision], int] = {
    ("cpu", "float32"): 4,
    ("cpu", "bfloat16"): 8,
    ("gpu", "float32"): 32,
    ("gpu", "bfloat16"): 64,
    ("tpu", "float32"): 64,
    ("tpu", "bfloat16"): 128,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """How models are computed on this machine.

    Attributes:
        device: the kind of device.
        devices: TensorFlow's names of the devices, such as "GPU:0".
        precision: of the convolutions; routing and logits are always float32.
        engine: the engine that is tried first.
        reason: why.
        fallback: whether TensorFlow takes over if that engine fails or its answers differ.
        streams: batches computed at the same time.
        threads_per_stream: threads that share one batch, on a CPU.
        max_batch_size: most rows per batch.
        batch_timeout: seconds that a small batch may wait for more rows.
    """

    device: Device
    devices: tuple[str, ...]
    precision: Precision
    engine: EngineName
    reason: str
    fallback: bool
    streams: int
    threads_per_stream: int
    max_batch_size: int
    batch_timeout: float = 0.0


def make_plan(
    machine: Machine,
    *,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    streams: int | Literal["auto"] = "auto",
    threads_per_stream: int = 1,
    max_batch_size: int | Literal["auto"] = "auto",
    batch_timeout: float | Literal["auto"] = "auto",
) -> EnginePlan:
    """Decide how models are computed.

    Args:
        machine: what there is.
        device: "auto" (an accelerator if there is one), "cpu", "gpu" or "tpu".
        precision: "float32", "bfloat16", or "auto": bfloat16 where the device has it natively.
        engine: "tensorflow", "openvino", or "auto": OpenVINO for float32 on a CPU, if it is installed. For bfloat16
            "auto" takes TensorFlow: OpenVINO is faster only with full batches, and needs twice the memory.
        streams: batches computed at once; "auto" is one per physical core on a CPU, and one per accelerator.
        threads_per_stream: threads that share one batch, on a CPU.
        max_batch_size: most rows per batch; "auto" is the best one measured for device and precision.
        batch_timeout: seconds that a small batch may wait for more rows; "auto" is 0 on a CPU, where streams share
            the cores, and 0.002 on accelerators, which compute a few rows no faster than many.

    Raises:
        ConfigurationError: this machine doesn't have what you ask for; the message says what it has.
    """
    kind = _device(machine, device)
    devices = tuple(name for k, name in machine.accelerators if k == kind) if kind != "cpu" else ("CPU:0",)
    chosen_precision = _precision(machine, kind, precision)
    chosen_engine, reason = _engine(machine, kind, chosen_precision, engine)
    best_streams = max(1, machine.cores // threads_per_stream) if kind == "cpu" else len(devices)
    best_batch_size = BEST_BATCH_SIZE[kind, chosen_precision]
    return EnginePlan(
        device=kind,
        devices=devices,
        precision=chosen_precision,
        engine=chosen_engine,
        reason=reason,
        fallback=engine == "auto",
        streams=best_streams if streams == "auto" else streams,
        threads_per_stream=threads_per_stream,
        max_batch_size=best_batch_size if max_batch_size == "auto" else max_batch_size,
        batch_timeout=(0.0 if kind == "cpu" else 0.002) if batch_timeout == "auto" else batch_timeout,
    )


def _device(machine: Machine, device: str) -> Device:
    available: list[Device] = ["cpu", *dict.fromkeys(kind for kind, _ in machine.accelerators)]
    if device == "auto":
        return available[-1]
    for kind in available:
        if device == kind:
            return kind
    raise ConfigurationError(f"There is no device {device!r} here; there is {', '.join(available)}.")


def _precision(machine: Machine, device: Device, precision: str) -> Precision:
    native = machine.cpu_bfloat16 if device == "cpu" else machine.accelerator_bfloat16
    if precision == "auto":
        return "bfloat16" if native else "float32"
    if precision not in get_args(Precision):
        raise ConfigurationError(f"There is no precision {precision!r}; choose auto, {', '.join(get_args(Precision))}.")
    if precision == "bfloat16" and not native:
        raise ConfigurationError(f"This {device} has no native bfloat16; choose float32 or auto.")
    return "bfloat16" if precision == "bfloat16" else "float32"


def _engine(machine: Machine, device: Device, precision: Precision, engine: str) -> tuple[EngineName, str]:
    """The engine, and in a few words why."""
    if engine == "auto":
        return _best_engine(machine, device, precision)
    if engine not in get_args(EngineName):
        raise ConfigurationError(f"There is no engine {engine!r}; choose auto, {', '.join(get_args(EngineName))}.")
    if engine == "openvino" and device != "cpu":
        raise ConfigurationError(f"The engine openvino computes on a CPU, not on a {device}; choose tensorflow.")
    if engine == "openvino" and not machine.openvino:
        raise ConfigurationError("The engine openvino is not installed: pip install 'condconv-serve[openvino]'.")
    return ("openvino" if engine == "openvino" else "tensorflow"), "it was asked for"


def _best_engine(machine: Machine, device: Device, precision: Precision) -> tuple[EngineName, str]:
    if device != "cpu":
        return "tensorflow", f"the only engine that computes on a {device}"
    if not machine.openvino:
        return "tensorflow", "openvino is not installed"
    if precision == "bfloat16":
        return "tensorflow", "in bfloat16 openvino needs twice the memory and is faster in full batches only"
    return "openvino", "it is installed, and faster in float32 on a CPU"
