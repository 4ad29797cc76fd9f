"""The order in which workers get files of tests: those that take long for their few tests come first.

Workers get a whole file at a time. Without this, files with many tests come first, since those are taken for the slow
ones; then a file of three tests and 40 seconds is begun when all others are done, and only one worker has work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

SLOW = (
    "tests/unit/store/importers/test_published_names.py",
    "tests/e2e/test_real_versions.py",
    "tests/e2e/test_live_versions.py",
    "tests/fault/test_clients_that_leave.py",
    "tests/unit/runtime/native/test_native_engine.py",
    "tests/parity/test_families.py",
    "tests/e2e/test_no_paths_in_answers.py",
    "tests/fault/test_engine_faults.py",
    "tests/unit/runtime/test_lowering.py",
    "tests/e2e/test_batches_with_a_server.py",
    "tests/unit/runtime/native_kernels/test_kernels.py",
    "tests/parity/test_import_and_serve.py",
    "tests/parity/test_family_weights.py",
    "tests/e2e/test_start.py",
    "tests/e2e/test_openapi_fuzz.py",
    "tests/fault/test_stalled_log.py",
    "tests/unit/runtime/test_engines.py",
    "tests/unit/runtime/test_ablation_engine.py",
    "tests/unit/store/importers/test_upcycle.py",
    "tests/unit/offline/test_bench.py",
    "tests/parity/test_tiny.py",
    "tests/unit/cli/test_cli.py",
    "tests/unit/runtime/test_fresh_process.py",
)
"""Those that take 8 seconds and more; the slowest first."""


def in_order(files: Sequence[str]) -> list[int]:
    """The places of tests in a better order, by the file of each: slow files first, then those with the most tests."""
    count, first = Counter(files), {file: place for place, file in reversed(list(enumerate(files)))}

    def rank(place: int) -> tuple[int, int, int, int]:
        file = files[place]
        slow = SLOW.index(file) if file in SLOW else len(SLOW)
        return slow, -count[file], first[file], place

    return sorted(range(len(files)), key=rank)


def put_in_order(items: list[pytest.Item]) -> None:
    """Bring collected tests into that order. Tests of a file keep theirs."""
    items[:] = [items[place] for place in in_order([item.nodeid.partition("::")[0] for item in items])]
