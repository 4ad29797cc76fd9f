"""Our engine against what one would pick instead: the same B0-8e weights, 224 pixels, in one run.

Each contestant lives in a process of its own and idles while another one is measured. Round by round they take turns,
so that a busy moment of the machine hits all of them; the figures are medians over the rounds. First all must give the
same logits. All of them together need about 16 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import contestants
import peak
import report
from engine_tables import render

TOLERANCE = {"f32": 1e-5, "bf16": 0.1}
"""Largest difference of a logit from PyTorch's in float32, relative to the largest logit."""
PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "openvino", "torch", "timm", "onnxruntime", "numpy")


class Process:
    """One contestant; `difference` is how far its logits are off, `multiply_adds` those of a row, where it is ours."""

    def __init__(self, name: str, work: Path) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended; says why.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        script = Path(contestants.__file__)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), name, str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        ready = self._read()
        self.difference: float = ready["difference"]
        self.multiply_adds: int | None = ready["multiply_adds"]

    def measure(self, *, batch_size: int, lone: bool, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._process.stdin.write(json.dumps({"batch_size": batch_size, "lone": lone, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["nothing"]
            raise RuntimeError(
                f"{self.name} ended with {self._process.returncode} (-9: out of memory) and said: {last[0]}"
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def main() -> int:
    """Run the contest; returns 1 if a contestant's logits are wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="at least 3")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--only", default="", help="contestants whose name contains one of these, comma-separated")
    parser.add_argument("--work", type=Path, help="keep weights and exports here")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds: at least 3")
    wanted = [word for word in arguments.only.split(",") if word]
    names = [name for name in contestants.CONTESTANTS if not wanted or any(word in name for word in wanted)]
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        if not (work / "b8.onnx").exists():
            say("making weights and exports ...")
            # In a process of its own, so that PyTorch's threads are not in the way.
            subprocess.run([sys.executable, "-W", "ignore", contestants.__file__, "prepare", str(work)], check=True)
        peaks = peak.peak()
        processes, failures, wrong = start(names, work)
        figures = contest(processes, rounds=arguments.rounds, seconds=arguments.seconds)
        for process in processes:
            process.close()
    document = {
        "machine": report.machine(PACKAGES),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "difference": {process.name: process.difference for process in processes},
        "failed": failures,
        "multiply_adds": {process.name: process.multiply_adds for process in processes},
        "peaks": peaks,
        "figures": figures,
    }
    print(render(document))
    say(f"wrote {report.save('engine_peers', document)}")
    return int(wrong)


def start(names: list[str], work: Path) -> tuple[list[Process], dict[str, str], bool]:
    processes, failures, wrong = [], {}, False
    for name in names:
        try:
            process = Process(name, work)
        except RuntimeError as error:
            failures[name] = str(error)
            say(f"{name}: skipped, {error}")
            continue
        limit = TOLERANCE[name.split()[-1]]
        static = name.startswith("static")
        if not static and not process.difference <= limit:
            wrong = True
            failures[name] = f"wrong logits: {process.difference:.2g} off, {limit:g} allowed"
            say(f"{name}: {failures[name]}")
            process.close()
            continue
        say(f"{name}: ready{'' if static else f', logits within {process.difference:.1g}'}")
        processes.append(process)
    return processes, failures, wrong


def contest(processes: list[Process], *, rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Rows per second and milliseconds of processor time per row by batch size, and milliseconds of a lone image.

    Each is a list over the rounds.
    """
    columns = [f"b{size}{more}" for size in contestants.BATCH_SIZES for more in ("", "_cpu_ms")]
    figures: dict[str, dict[str, list[float]]] = {p.name: {c: [] for c in [*columns, "lone_ms"]} for p in processes}
    for number in range(rounds):
        for size in contestants.BATCH_SIZES:
            for process in processes:
                found = process.measure(batch_size=size, lone=False, seconds=seconds)
                figures[process.name][f"b{size}"].append(found["rows_per_second"])
                figures[process.name][f"b{size}_cpu_ms"].append(found["cpu_per_row"] * 1e3)
        for process in processes:
            found = process.measure(batch_size=1, lone=True, seconds=seconds / 2)
            figures[process.name]["lone_ms"].append(found["latency_p50"] * 1e3)
        say(f"round {number + 1} of {rounds}")
    return figures


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
