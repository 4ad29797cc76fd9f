"""`condconv bench engine` and `condconv models verify --precision`: a model measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from condconv_serve.domain import Engine, Preprocessing, Row
from condconv_serve.engine_planning import plan_engines
from condconv_serve.errors import BundleError, ServiceError
from condconv_serve.imaging import decode, transform
from condconv_serve.offline.throughput import Throughput, measure
from condconv_serve.routing.picture import Look, dress, new_figure, save
from condconv_serve.runtime.tensorflow_import import import_tensorflow
from condconv_serve.samples import SAMPLES
from condconv_serve.settings import Settings
from condconv_serve.store import Bundle

if TYPE_CHECKING:
    from condconv_serve.offline.agreement import Agreement
    from condconv_serve.runtime.plan import EnginePlan

CROPS = 12
"""Rows made of each photo: one as the model is given it, the others from random crops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCase:
    """One combination to measure."""

    engine: str
    native: bool
    """Whether native kernels compute in it."""
    precision: str
    streams: int
    batch_size: int

    @property
    def computed_by(self) -> str:
        """The engine, and native kernels if they compute in it."""
        return f"{self.engine} + native" if self.native else self.engine

    def __str__(self) -> str:
        """In words."""
        streams = f"{self.streams} stream{'s' * (self.streams != 1)}"
        return f"{self.computed_by} in {self.precision}, {streams}, batches of {self.batch_size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigure:
    """What was measured for one combination: medians over the rounds; `speed` is relative to the first combination."""

    case: EngineCase
    rows_per_second: float
    latency_p50: float
    """Seconds per batch."""
    latency_p99: float
    cpu_per_row: float
    """Seconds of processor time per row, of all threads."""
    speed: float

    def to_json(self) -> dict[str, Any]:
        """All of it in one level."""
        figure = asdict(self)
        return {**figure.pop("case"), **figure}


@dataclass(frozen=True, slots=True)
class EngineBench:
    """What was measured for all combinations in so many rounds; after Ctrl-C they are fewer than asked for."""

    figures: list[EngineFigure]
    rounds: int


def bench_engine(
    settings: Settings,
    bundle: Bundle,
    *,
    engines: Sequence[str],
    natives: Sequence[str],
    precisions: Sequence[str],
    streams: Sequence[int],
    batch_sizes: Sequence[int],
    seconds: float,
    rounds: int,
    progress: Callable[[str], None],
) -> EngineBench:
    """Measure a model's throughput and latency in every combination. They take turns, round by round.

    Ctrl-C ends it with the rounds that are complete, if there is one.

    Args:
        settings: device and threads; the arguments below come first.
        bundle: the model.
        engines: by name; empty means the one that would serve.
        natives: "on" or "off"; empty means as it would serve. With both, openvino is measured once.
        precisions: empty means the one that would serve.
        streams: batches computed at once; empty means as many as would serve.
        batch_sizes: rows per batch.
        seconds: per measurement.
        rounds: how often each combination is measured.
        progress: called with a line for each step and each measurement.

    Raises:
        BundleError, ConfigurationError: the bundle is unusable, or this machine lacks what is asked for.
    """
    plan = plan_engines(settings)
    plans = _plans(
        settings,
        engine=engines or [plan.engine],
        native=natives or [plan.native],
        precision=precisions or [plan.precision],
        streams=streams or [plan.streams],
        max_batch_size=batch_sizes,
    )
    cases = list(plans)
    build, preprocessing = _builder(bundle, plan)
    rows = np.stack(photo_rows(SAMPLES, preprocessing, max_pixels=settings.max_pixels))
    batches = {size: np.resize(rows, (size, *rows.shape[1:])) for size in batch_sizes}
    built: dict[tuple[Any, ...], Engine] = {}
    try:
        for case, its_plan in plans.items():
            if (key := _engine_key(case)) not in built:
                progress(f"building {case.computed_by} in {case.precision}")
                built[key] = build(its_plan)
            for size in (1, case.batch_size):
                built[key](batches.get(size, batches[case.batch_size]))
        complete: list[dict[EngineCase, Throughput]] = []
        try:
            for number in range(rounds):
                found = {}
                for case in cases:
                    call = partial(_call, built[_engine_key(case)], batches[case.batch_size])
                    found[case] = measure(call, callers=case.streams, rows_per_call=case.batch_size, seconds=seconds)
                    progress(f"round {number + 1} of {rounds}: {case}: {found[case].rows_per_second:.1f} images/s")
                complete.append(found)
        except KeyboardInterrupt:
            if not complete:
                raise
    finally:
        for engine in built.values():
            engine.close()
    return EngineBench([_figure(case, cases[0], complete) for case in cases], len(complete))


def _figure(case: EngineCase, first: EngineCase, rounds: Sequence[dict[EngineCase, Throughput]]) -> EngineFigure:
    return EngineFigure(
        case=case,
        rows_per_second=median(found[case].rows_per_second for found in rounds),
        latency_p50=median(found[case].latency_p50 for found in rounds),
        latency_p99=median(found[case].latency_p99 for found in rounds),
        cpu_per_row=median(found[case].cpu_per_row for found in rounds),
        # Compare within each round, so that a busy moment of the machine hits both.
        speed=median(found[case].rows_per_second / found[first].rows_per_second for found in rounds),
    )


def compare_precisions(settings: Settings, bundle: Bundle, *, precision: str, images: Sequence[Path]) -> Agreement:
    """Compare a model's answers in a precision with those in float32, computed by the same engine.

    Args:
        settings: device and engine.
        bundle: the model.
        precision: to compare with float32.
        images: photos; rows are made of each one, and of random crops of it.

    Raises:
        BundleError, ConfigurationError: the bundle is unusable, or this machine lacks the precision.
        ServiceError: an image can't be read; says which.
    """
    plan = plan_engines(settings.model_copy(update={"precision": precision}))
    exact = plan_engines(settings.model_copy(update={"precision": "float32"}))
    build, preprocessing = _builder(bundle, plan)
    from condconv_serve.offline.agreement import compare

    rows = photo_rows(images, preprocessing, max_pixels=settings.max_pixels)
    engine, reference = build(plan), build(exact)
    try:
        return compare(engine, reference, rows)
    finally:
        engine.close()
        reference.close()


def photo_rows(files: Sequence[Path], preprocessing: Preprocessing, *, max_pixels: int) -> list[Row]:
    """Make rows of photos: each as the model is given it, then random crops of half to all of its sides.

    Raises:
        ServiceError: an image can't be read; says which.
    """
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for file in files:
        try:
            photo = decode(file.read_bytes(), max_pixels=max_pixels)
        except ServiceError as error:
            raise type(error)(f"{file}: {error}") from error
        rows.append(transform(photo, preprocessing))
        for _ in range(CROPS - 1):
            height, width = (int(side * rng.uniform(0.5, 1)) for side in photo.shape[:2])
            top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
            rows.append(transform(photo[top : top + height, left : left + width], preprocessing))
    return rows


def plot_engine(figures: Sequence[EngineFigure], path: Path, look: Look) -> None:
    """Draw throughput, and latency, over the batch size: one line for each engine, precision and number of streams."""
    lines: dict[str, list[EngineFigure]] = {}
    for figure in figures:
        case = figure.case
        label = f"{case.computed_by} {case.precision}, {case.streams} stream{'s' if case.streams > 1 else ''}"
        lines.setdefault(label, []).append(figure)
    picture = new_figure(10, 4.4, look)
    throughput, latency = picture.subplots(1, 2)
    for number, (label, found) in enumerate(lines.items()):
        sizes, colours = [figure.case.batch_size for figure in found], look.colours.lines
        line = {"color": colours[number % len(colours)], "marker": "os^Dv"[number // len(colours) % 5], "label": label}
        throughput.plot(sizes, [figure.rows_per_second for figure in found], **line)
        latency.plot(sizes, [figure.latency_p50 * 1e3 for figure in found], **line)
    for axis, title in ((throughput, "images per second"), (latency, "milliseconds per batch (median)")):
        axis.set_xscale("log", base=2)
        ticks = sorted({figure.case.batch_size for figure in figures})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("batch size (images)")
        axis.set_title(title)
        axis.grid(color=look.colours.line)
    throughput.legend(fontsize=8)
    for axis in (throughput, latency):
        dress(axis, look)
    path.write_bytes(save(picture, look))


def _builder(bundle: Bundle, plan: EnginePlan) -> tuple[Callable[[EnginePlan], Engine], Preprocessing]:
    """Load a bundle's network; return what makes engines of it."""
    import_tensorflow()
    from condconv_serve.runtime.engines import build_engine
    from condconv_serve.runtime.loading import load_network
    from condconv_serve.runtime.tensorflow_engine import limit_threads

    if plan.device == "cpu":
        limit_threads(plan.threads_per_stream)
    network, preprocessing = load_network(bundle), bundle.manifest.preprocessing.to_domain()

    def build(its_plan: EnginePlan) -> Engine:
        engine, described = build_engine(network, preprocessing, its_plan)
        name = f"{bundle.manifest.name}/{bundle.manifest.version}"
        if described.engine != its_plan.engine:
            raise BundleError(f"{name}: {described.reason}")
        if described.native.fell_back and its_plan.native != "off":
            raise BundleError(f"{name}: {described.native}")
        return engine

    return build, preprocessing


def _plans(settings: Settings, **asked: Sequence[Any]) -> dict[EngineCase, EnginePlan]:
    """Plan each combination of settings, which are called as in `Settings`."""
    found = {}
    for values in product(*asked.values()):
        update = dict(zip(asked, values, strict=True))
        if update["engine"] == "openvino" and update["native"] == "on" and "off" in asked["native"]:
            continue
        plan = plan_engines(settings.model_copy(update=update))
        case = EngineCase(
            engine=plan.engine,
            native=plan.native != "off",
            precision=plan.precision,
            streams=plan.streams,
            batch_size=plan.max_batch_size,
        )
        found[case] = plan
    return found


def _engine_key(case: EngineCase) -> tuple[Any, ...]:
    """What needs an engine of its own: TensorFlow's serves any number of streams and any batch size."""
    return (case.engine, case.native, case.precision) if case.engine == "tensorflow" else (case,)


def _call(engine: Engine, rows: Row, caller: int) -> None:
    engine(rows, caller)
