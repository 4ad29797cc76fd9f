"""How models are computed on this machine: from settings to a plan."""

from __future__ import annotations

from condconv_serve.runtime.devices import detect_machine
from condconv_serve.runtime.plan import EngineOptions, EnginePlan, make_plan
from condconv_serve.settings import Settings


def plan_engines(settings: Settings) -> EnginePlan:
    """Decide how models are computed on this machine.

    Raises:
        ConfigurationError: a setting asks for what this machine doesn't have.
    """
    machine = detect_machine(look_for_accelerators=settings.device in ("gpu", "tpu"))
    return make_plan(
        machine,
        EngineOptions(
            device=settings.device,
            precision=settings.precision,
            engine=settings.engine,
            native=settings.native,
            streams=settings.streams,
            threads_per_stream=settings.threads_per_stream,
            max_batch_size=settings.max_batch_size,
            batch_timeout=settings.batch_timeout,
        ),
    )
