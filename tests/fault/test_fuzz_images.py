"""Fuzzed images may be refused, and nothing else: no crash, no hang, no memory beyond a limit, no other error.

`FUZZ_IMAGES` says how many (`make fuzz` takes 100,000), `FUZZ_SEED` which ones. Whatever fails is saved in `FUZZ_SAVE`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fault import fuzzing

COUNT = int(os.environ.get("FUZZ_IMAGES", "500"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ROOT = Path(__file__).parents[2]
SAVE = Path(os.environ.get("FUZZ_SAVE", ROOT / "build" / "fuzz_failures"))
WORKERS = min(4, os.cpu_count() or 1)
MAX_FAILURES = 50

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of a process's memory"
)


@dataclass
class Found:
    """What one or more workers found."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int, str] = (0.0, -1, "")
    largest: tuple[int, int, str] = (0, -1, "")

    def add(self, other: Found) -> None:
        self.outcomes += other.outcomes
        self.failures |= other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)


def fuzz(first: int, *, count: int, step: int, seed: int) -> Found:
    """Let workers decode every `step`-th image from `first` on; another one takes over where one dies."""
    found = Found()
    while first < count and len(found.failures) < MAX_FAILURES:
        current, finished = first, -1
        with tempfile.TemporaryFile("w+") as complaints:
            command = [sys.executable, "-m", "tests.fault.fuzzing", *map(str, (first, count, step, seed))]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=complaints, text=True) as worker:
                assert worker.stdout is not None
                for line in worker.stdout:
                    if not line.startswith("["):
                        current = int(line)
                        continue
                    finished, name, outcome, seconds, growth = json.loads(line)
                    found.outcomes[outcome] += 1
                    found.slowest = max(found.slowest, (seconds, finished, name))
                    found.largest = max(found.largest, (growth, finished, name))
                    if outcome.startswith("wrong"):
                        found.failures[finished] = outcome
                    elif growth > fuzzing.MAX_GROWTH:
                        found.failures[finished] = f"it took {growth >> 20} MB"
            if worker.returncode == 0:
                return found
            complaints.seek(0)
            said = complaints.read()[-1500:]
        if finished == current or (current == first and not found.outcomes and worker.returncode > 0):
            raise AssertionError(f"the worker failed between images:\n{said}")
        how = signal.Signals(-worker.returncode).name if worker.returncode < 0 else f"exit code {worker.returncode}"
        found.outcomes["died"] += 1
        found.failures[current] = f"it hung or crashed ({how})\n{said}"
        first = current + step
    return found


def test_fuzzed_images_are_decoded_or_refused() -> None:
    found = Found()
    with ThreadPoolExecutor(WORKERS) as pool:
        for part in pool.map(lambda first: fuzz(first, count=COUNT, step=WORKERS, seed=SEED), range(WORKERS)):
            found.add(part)
    for number in found.failures:
        SAVE.mkdir(parents=True, exist_ok=True)
        name, data = fuzzing.fuzzed(number, count=COUNT, seed=SEED)
        (SAVE / f"{SEED}_{COUNT}_{number}_{name}").write_bytes(data)
    (seconds, slow, slow_name), (growth, large, large_name) = found.slowest, found.largest
    print(f"\n{found.outcomes.total()} images: {dict(found.outcomes.most_common())}")
    print(f"slowest {seconds:.3f} s (image {slow}, {slow_name}); most memory {growth / 2**20:.1f} MB ", end="")
    print(f"(image {large}, {large_name})")
    assert not found.failures, "\n".join(f"{number}: {what}" for number, what in sorted(found.failures.items()))
    assert found.outcomes.total() == COUNT
    # Damage that never gets past the signature, or never does any, would prove nothing.
    assert found.outcomes["decoded"] > COUNT / 20
    assert found.outcomes["corrupt_image"] > COUNT / 5
    assert found.outcomes["image_too_large"] > COUNT / 200


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 77])
def test_a_number_always_gives_the_same_image(number: int) -> None:
    first = fuzzing.fuzzed(number, count=COUNT, seed=SEED)
    assert first == fuzzing.fuzzed(number, count=COUNT, seed=SEED)
    assert first != fuzzing.fuzzed(number + 8, count=COUNT, seed=SEED)


def test_all_files_are_good_before_they_are_damaged() -> None:
    for name, data in fuzzing.corpus().items():
        assert fuzzing.attempt(data, sufficient=None) == "decoded", name
