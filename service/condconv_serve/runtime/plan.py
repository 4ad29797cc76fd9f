"""Decides how models run: device, precision, engine, streams and batch size. One pure function, easy to test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from condconv_serve.domain import NativeUse
from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.devices import Device, Machine

Precision = Literal["float32", "bfloat16"]
EngineName = Literal["tensorflow", "openvino"]
NativeChoice = Literal["auto", "on", "off"]

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
BEST_NATIVE_BATCH_SIZE = 8
"""The same with native kernels, in both precisions: mixed kernels never leave the cache, so only the activations count,
and the experts are read once per batch."""


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
        native: what native kernels do in TensorFlow on a CPU. "on": they compute what they can, and a model that they
            can't compute at all, or whose answers differ, is refused. "auto": TensorFlow's own operations take over
            such a model. "off": they are not used.
        native_use: why, and with which instruction set. Where `native` is "off", this is so for every model.
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
    native: NativeChoice
    native_use: NativeUse
    streams: int
    threads_per_stream: int
    max_batch_size: int
    batch_timeout: float = 0.0

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.engine} ({self.reason}), native kernels {self.native} ({self.native_use.reason}), on "
            f"{', '.join(self.devices)} in {self.precision}, {self.streams} streams, batches of up to "
            f"{self.max_batch_size} rows"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What you may ask for.

    Attributes:
        device: "auto" (an accelerator if there is one), "cpu", "gpu" or "tpu".
        precision: "float32", "bfloat16", or "auto": bfloat16 where the device has it natively.
        engine: "tensorflow", "openvino", or "auto": TensorFlow where it hosts native kernels. Without them
            OpenVINO for float32 on a CPU, if it is installed. For bfloat16 "auto" takes TensorFlow: OpenVINO is faster
            only with full batches, and needs twice the memory.
        native: "on" (native kernels in TensorFlow on a CPU), "off", or "auto": where they can be had.
        streams: batches computed at once; "auto" is one per physical core on a CPU, and one per accelerator.
        threads_per_stream: threads that share one batch, on a CPU.
        max_batch_size: most rows per batch; "auto" is the best one measured for device and precision.
        batch_timeout: seconds that a small batch may wait for more rows; "auto" is 0 on a CPU, where streams share
            the cores, and 0.002 on accelerators, which compute a few rows no faster than many.
    """

    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    native: str = "auto"
    streams: int | Literal["auto"] = "auto"
    threads_per_stream: int = 1
    max_batch_size: int | Literal["auto"] = "auto"
    batch_timeout: float | Literal["auto"] = "auto"


def make_plan(machine: Machine, options: EngineOptions | None = None) -> EnginePlan:
    """Decide how models are computed.

    Args:
        machine: what there is.
        options: what is asked for; None leaves all to this function.

    Raises:
        ConfigurationError: this machine doesn't have what you ask for; the message says what it has.
    """
    asked = options or EngineOptions()
    kind = _device(machine, asked.device)
    devices = tuple(name for k, name in machine.accelerators if k == kind) if kind != "cpu" else ("CPU:0",)
    precision = _precision(machine, kind, asked.precision)
    native, native_use = _native(machine, kind, precision, engine=asked.engine, native=asked.native)
    engine, reason = _engine(machine, kind, precision, engine=asked.engine, native=native)
    streams = max(1, machine.cores // asked.threads_per_stream) if kind == "cpu" else len(devices)
    batch_size = BEST_BATCH_SIZE[kind, precision] if native == "off" else BEST_NATIVE_BATCH_SIZE
    batch_timeout = 0.0 if kind == "cpu" else 0.002
    return EnginePlan(
        device=kind,
        devices=devices,
        precision=precision,
        engine=engine,
        reason=reason,
        fallback=asked.engine == "auto",
        native=native,
        native_use=native_use,
        streams=streams if asked.streams == "auto" else asked.streams,
        threads_per_stream=asked.threads_per_stream,
        max_batch_size=batch_size if asked.max_batch_size == "auto" else asked.max_batch_size,
        batch_timeout=batch_timeout if asked.batch_timeout == "auto" else asked.batch_timeout,
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
    has_it = machine.cpu_bfloat16 if device == "cpu" else machine.accelerator_bfloat16
    if precision == "auto":
        return "bfloat16" if has_it else "float32"
    if precision not in get_args(Precision):
        raise ConfigurationError(f"There is no precision {precision!r}; choose auto, {', '.join(get_args(Precision))}.")
    if precision == "bfloat16" and not has_it:
        raise ConfigurationError(f"This {device} has no native bfloat16; choose float32 or auto.")
    return "bfloat16" if precision == "bfloat16" else "float32"


def _native(
    machine: Machine, device: Device, precision: Precision, *, engine: str, native: str
) -> tuple[NativeChoice, NativeUse]:
    """Whether native kernels are used, and in a few words why."""
    if native not in get_args(NativeChoice):
        raise ConfigurationError(f"There is no native={native!r}; choose {', '.join(get_args(NativeChoice))}.")
    if native == "off":
        return "off", NativeUse(reason="they were switched off")
    unused = _native_unused(machine, device, precision, engine)
    if unused and native == "on":
        raise ConfigurationError(f"Native kernels can't be used: {unused.reason}. Choose native=auto or off.")
    if unused:
        return "off", unused
    isa = machine.native.isa
    if native == "on":
        return "on", NativeUse(state="used", reason="they were asked for", isa=isa)
    return "auto", NativeUse(state="used", reason="they can be used here", isa=isa)


def _native_unused(machine: Machine, device: Device, precision: Precision, engine: str) -> NativeUse | None:
    """Why native kernels can't be used; None if they can."""
    if device != "cpu":
        return NativeUse(reason=f"they compute on a CPU, not on a {device}")
    if engine == "openvino":
        return NativeUse(reason="they compute in TensorFlow, not in openvino")
    if machine.native.isa is None:
        return NativeUse(state="unavailable", reason=machine.native.problem)
    if precision == "bfloat16" and not machine.native.bfloat16:
        return NativeUse(state="unavailable", reason=f"they have no bfloat16 with {machine.native.isa}")
    return None


def _engine(
    machine: Machine, device: Device, precision: Precision, *, engine: str, native: NativeChoice
) -> tuple[EngineName, str]:
    """The engine, and in a few words why."""
    if engine == "auto":
        return _best_engine(machine, device, precision, native=native)
    if engine not in get_args(EngineName):
        raise ConfigurationError(f"There is no engine {engine!r}; choose auto, {', '.join(get_args(EngineName))}.")
    if engine == "openvino" and device != "cpu":
        raise ConfigurationError(f"The engine openvino computes on a CPU, not on a {device}; choose tensorflow.")
    if engine == "openvino" and not machine.openvino:
        raise ConfigurationError("The engine openvino is not installed: pip install 'condconv-serve[openvino]'.")
    return ("openvino" if engine == "openvino" else "tensorflow"), "it was asked for"


def _best_engine(
    machine: Machine, device: Device, precision: Precision, *, native: NativeChoice
) -> tuple[EngineName, str]:
    if device != "cpu":
        return "tensorflow", f"the only engine that computes on a {device}"
    if native != "off":
        return "tensorflow", "it hosts the native kernels"
    if not machine.openvino:
        return "tensorflow", "openvino is not installed"
    if precision == "bfloat16":
        return "tensorflow", "in bfloat16 openvino needs twice the memory and is faster in full batches only"
    return "openvino", "it is installed, and faster in float32 on a CPU"
