"""Where front processes count, so that nothing is lost when one dies: prometheus_client's multiprocess mode.

A process that starts with `FrontFiles.environment` keeps its counters, histograms and gauges in files that any process
can read. Whoever starts fronts does this:

    files = FrontFiles(directory)                 # new for each start of the service
    start_front(env={**os.environ, **files.environment()})
    files.gone(pid)                               # when that front has ended, however it did
    files.restarted("front")                      # when another one has taken its place

Nobody else may have this environment, least of all the engine process: its own metrics are functions and collectors,
too, and they are added to the files' by `exposition.CombinedExposition`. Each front keeps `ProcessFigures`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector

SUMMED_GAUGES: Final = "livesum"
"""`multiprocess_mode` of the gauges that fronts have: the values of the living ones add up."""
FIGURES_SECONDS = 5.0
_ADDED_UP = ("counter", "histogram")
_READ = (*_ADDED_UP, f"gauge_{SUMMED_GAUGES}")
_GONE = "0"  # in the place of a process id: all fronts that have ended
_SUPERVISOR = "1"  # what whoever starts them counts
WORKER_RESTARTS: Final = "condconv_worker_restarts"
WORKER_RESTARTS_HELP: Final = (
    "With workers: processes that were started in the place of one that had ended, by process: front, engine. Does a "
    "process end again and again?"
)
_UNREADABLE = (OSError, RuntimeError, ValueError, struct.error)
logger = logging.getLogger(__name__)


class FrontFiles:
    """The files in which fronts count. Any process may use this, at the same time as others."""

    def __init__(self, directory: Path) -> None:
        """Use the files in a directory, which is there already."""
        self._directory = directory

    def environment(self) -> dict[str, str]:
        """Environment variables for a front process; the library looks at them when it is imported."""
        return {"PROMETHEUS_MULTIPROC_DIR": str(self._directory)}

    def families(self) -> list[Metric]:
        """What all fronts have counted, the ended ones too, and the gauges of those that run."""
        with self._locked(fcntl.LOCK_SH):
            files = [
                str(file)
                for kind in _READ
                for file in sorted(self._directory.glob(f"{kind}_*.db"))
                if file.stat().st_size  # else it is being made
            ]
            try:
                return _merged(files)
            except _UNREADABLE:
                return _merged([file for file in files if _is_readable(file)])

    def gone(self, pid: int) -> None:
        """Keep what a front has counted in one file for all that have ended, and forget its gauges.

        Call it after the process has ended, even if it was killed. Fronts that come and go leave no files then.
        """
        with self._locked(fcntl.LOCK_EX):
            for kind in _ADDED_UP:
                file = self._directory / f"{kind}_{pid}.db"
                if file.exists():
                    if file.stat().st_size and _is_readable(str(file)):
                        _add(file, to=self._directory / f"{kind}_{_GONE}.db")
                    file.unlink()
            for file in self._directory.glob(f"gauge_*_{pid}.db"):
                file.unlink()

    def restarted(self, process: str, times: int = 1) -> None:
        """Count that another process has taken the place of one that has ended; 0 shows that this is counted."""
        key = mmap_key(WORKER_RESTARTS, f"{WORKER_RESTARTS}_total", ["process"], [process], WORKER_RESTARTS_HELP)
        with self._locked(fcntl.LOCK_EX):
            counted = MmapedDict(str(self._directory / f"counter_{_SUPERVISOR}.db"))  # type: ignore[no-untyped-call]
            counted.write_value(key, counted.read_value(key)[0] + times, 0.0)  # type: ignore[no-untyped-call]
            counted.close()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Keep readers and `gone` apart, in all processes; a process that dies lets go."""
        with (self._directory / "lock").open("a") as lock:
            fcntl.flock(lock, how)
            yield


class ProcessFigures:
    """CPU time and memory of a front, so that those of the service are the sum of its processes."""

    def __init__(self) -> None:
        """Count from when the process began."""
        registry = CollectorRegistry()
        self._collector = ProcessCollector(registry=None)
        self._seconds = 0.0
        self._cpu = Counter("process_cpu_seconds", "CPU time of this front.", registry=registry)
        self._memory = {
            name: Gauge(name, "Memory of this front.", multiprocess_mode=SUMMED_GAUGES, registry=registry)
            for name in ("process_resident_memory_bytes", "process_virtual_memory_bytes")
        }

    def update(self) -> None:
        """Look now."""
        for family in self._collector.collect():
            value = family.samples[0].value
            if family.name == "process_cpu_seconds":
                self._cpu.inc(value - self._seconds)
                self._seconds = value
            elif family.name in self._memory:
                self._memory[family.name].set(value)

    async def follow(self, *, every: float = FIGURES_SECONDS) -> None:
        """Look every few seconds, until this is cancelled."""
        while True:
            self.update()
            await asyncio.sleep(every)


def _merged(files: Sequence[str]) -> list[Metric]:
    return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


def _is_readable(file: str) -> bool:
    try:
        _merged([file])
    except _UNREADABLE as error:
        logger.warning("metrics of a front can't be read: %s (%s)", Path(file).name, error)
        return False
    return True


def _add(file: Path, *, to: Path) -> None:
    """Add the values of one file to another, which a process that dies here leaves whole."""
    new = to.with_suffix(".new")
    new.unlink(missing_ok=True)
    if to.exists():
        shutil.copyfile(to, new)
    total = MmapedDict(str(new))  # type: ignore[no-untyped-call]
    for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
        total.write_value(key, total.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
    total.close()  # type: ignore[no-untyped-call]
    os.replace(new, to)
