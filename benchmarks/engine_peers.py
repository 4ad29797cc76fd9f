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
from statistics import median
from typing import Any

import contestants
import report

TOLERANCE = {"f32": 1e-4, "bf16": 0.1}
"""Largest difference of a logit from PyTorch's in float32, relative to the largest logit."""
PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "openvino", "torch", "timm", "onnxruntime", "numpy")

# Targets: our contestant, the best of these peers, and how much faster it is to be.
TARGETS: list[tuple[str, str, str, float]] = [
    ("ours tensorflow f32", "openvino-timm", "f32", 1.15),
    ("ours tensorflow f32", "onnxruntime", "f32", 1.25),
    ("ours tensorflow f32", "timm inductor", "f32", 2.0),
    ("ours tensorflow f32", "official", "f32", 1.2),
    ("ours tensorflow bf16", "openvino-timm", "bf16", 1.15),
    ("best f32", "openvino-timm", "f32", 1.3),
    ("best bf16", "openvino-timm", "bf16", 1.4),
    ("ours tensorflow f32", "static tensorflow", "f32", 0.95),
    ("ours tensorflow bf16", "static tensorflow", "bf16", 0.95),
    ("ours openvino f32", "static openvino", "f32", 0.95),
    ("ours openvino bf16", "static openvino", "bf16", 0.95),
]
LONE_TARGETS = [("best f32", "official", "f32", 1.0), ("best f32", "onnxruntime", "f32", 1.0)]


class Process:
    """One contestant; `difference` is how far its logits are off."""

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
        self.difference: float = self._read()["difference"]

    def measure(self, *, batch_size: int, lone: bool, seconds: float) -> dict[str, float]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._process.stdin.write(json.dumps({"batch_size": batch_size, "lone": lone, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["nothing"]
            raise RuntimeError(
                f"{self.name} ended with {self._process.returncode} (-9: out of memory) and said: {last[0]}"
            )
        found: dict[str, float] = json.loads(line)
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
    """Rows per second by batch size, and milliseconds of a lone image: a list over the rounds for each contestant."""
    columns = [f"b{size}" for size in contestants.BATCH_SIZES]
    figures: dict[str, dict[str, list[float]]] = {p.name: {c: [] for c in [*columns, "lone_ms"]} for p in processes}
    for number in range(rounds):
        for size in contestants.BATCH_SIZES:
            for process in processes:
                found = process.measure(batch_size=size, lone=False, seconds=seconds)
                figures[process.name][f"b{size}"].append(found["rows_per_second"])
        for process in processes:
            found = process.measure(batch_size=1, lone=True, seconds=seconds / 2)
            figures[process.name]["lone_ms"].append(found["latency_p50"] * 1e3)
        say(f"round {number + 1} of {rounds}")
    return figures


def render(document: dict[str, Any]) -> str:
    """The tables: figures, and targets with the ratios found."""
    figures = document["figures"]
    rows = []
    for name, found in figures.items():
        cells = [f"{median(found[f'b{size}']):.0f}" for size in contestants.BATCH_SIZES]
        best = best_batch(figures, [name])[1]
        off = "" if name.startswith("static") else f"{document['difference'][name]:.0e}"
        rows.append([name, *cells, f"{best:.0f}", f"{median(found['lone_ms']):.1f}", off])
    columns = ["contestant", *(f"batch {size}" for size in contestants.BATCH_SIZES), "best", "lone ms", "logits off"]
    tables = [report.table(columns, rows), ""]
    goals = []
    for ours, peer, precision, target in TARGETS:
        found = ratio(figures, ours, peer, precision)
        if found is not None:
            goals.append(
                [f"{ours} over {peer} {precision}", f"{found:.2f}", f"{target:.2f}", report.verdict(found >= target)]
            )
    for ours, peer, precision, target in LONE_TARGETS:
        found = ratio(figures, ours, peer, precision, lone=True)
        if found is not None:
            goals.append(
                [f"lone image, {ours} over {peer}", f"{found:.2f}", f"{target:.2f}", report.verdict(found >= target)]
            )
    tables.append(report.table(["ratio of rows per second, best batch each", "found", "wanted", ""], goals))
    return "\n".join(tables)


def select(figures: dict[str, Any], name: str, precision: str) -> list[str]:
    prefix = "ours" if name.startswith("best") else name
    return [n for n in figures if n.startswith(prefix) and n.endswith(f" {precision}")]


def best_batch(figures: dict[str, Any], names: list[str]) -> tuple[list[float], float]:
    """The rounds, and their median, of the fastest of some contestants at its best batch size."""
    rounds = [figures[name][f"b{size}"] for name in names for size in contestants.BATCH_SIZES]
    best = max(rounds, key=median)
    return best, median(best)


def ratio(figures: dict[str, Any], ours: str, peer: str, precision: str, *, lone: bool = False) -> float | None:
    """Median over the rounds of ours over the best peer's; None if one is missing."""
    mine, theirs = select(figures, ours, precision), select(figures, peer, precision)
    if not mine or not theirs:
        return None
    if lone:
        a = min((figures[n]["lone_ms"] for n in mine), key=median)
        b = min((figures[n]["lone_ms"] for n in theirs), key=median)
        return median(y / x for x, y in zip(a, b, strict=True))
    a, b = best_batch(figures, mine)[0], best_batch(figures, theirs)[0]
    return median(x / y for x, y in zip(a, b, strict=True))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
