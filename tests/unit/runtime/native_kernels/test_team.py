"""Threads: a lone call is shared with free ones, more calls than threads are not, and results stay the same."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import build, library
from condconv_serve.runtime.kernels.program import Program
from tests.unit.runtime.native_kernels import fuzz
from tests.unit.runtime.native_kernels.blocks import Block

WIDE = Block(size=14, channels=64, expanded=384)
"""Each of its large steps is worth several tasks."""


@pytest.fixture
def threads(native) -> Iterator[None]:
    yield
    library.use_threads(1)


def helped(native) -> int:
    return int(native.cc_helped())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 6, 8])
def test_lone_call_is_shared_and_its_results_stay_the_same(native, rows, row_by_row):
    inputs = WIDE.inputs(rows)
    with WIDE.program(chunk=8, row_by_row=row_by_row) as program:
        library.use_threads(1)
        before = helped(native)
        alone = program.run(inputs)
        assert helped(native) == before
        library.use_threads(2)
        until = time.monotonic() + 60
        while helped(native) == before and time.monotonic() < until:  # the machine may have no core for a helper
            shared = program.run(inputs)
            for one, other in zip(alone, shared, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
        assert helped(native) > before


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [3, 17, 64, 1000])
def test_results_stay_the_same_with_any_number_of_threads(count):
    inputs = WIDE.inputs(3)
    with WIDE.program(chunk=2) as program:
        alone = program.run(inputs)
        library.use_threads(count)
        for _ in range(3):
            for one, other in zip(alone, program.run(inputs), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
        library.use_threads(2)
        np.testing.assert_allclose(program.run(inputs)[0], alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("threads")
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_steps_of_any_shape_may_be_cut_into_parts(native, data):
    spec, banks = fuzz.one_step(data.draw)
    with contextlib.suppress(ConfigurationError), Program(spec, banks) as program:
        inputs = [fuzz.array_of(value, data.draw(st.integers(1, 3))) for value in program.inputs[:1]]
        inputs += [fuzz.array_of(value, len(inputs[0])) for value in program.inputs[1:]]
        library.use_threads(1)
        alone = program.run(inputs)
        library.use_threads(data.draw(st.integers(2, 7)))
        native.cc_set_least_work(1)
        shared = program.run(inputs)
        native.cc_set_least_work(fuzz.LEAST_WORK)
        for one, other in zip(alone, shared, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for bank in banks:
        bank.close()


def of_thread(number: int | str | None) -> tuple[str, str, int]:
    """A thread's name, its state, and its processor time in ticks; without any once it has ended."""
    try:
        begin, _, end = Path(f"/proc/self/task/{number}/stat").read_text().rpartition(")")
    except OSError:
        return "", "", 0
    fields = end.split()
    return begin.partition("(")[2], fields[0], int(fields[11]) + int(fields[12])


@pytest.mark.usefixtures("threads")
def test_as_many_calls_as_threads_are_not_shared(native):
    def all_compute():
        """Without the helper, which had a task when the second call began."""
        helpers = [state for name, state, _ in map(of_thread, os.listdir("/proc/self/task")) if name == "condconv"]
        return set(helpers) <= {"S"} and all(of_thread(caller.native_id)[2] > 1 for caller in callers)

    library.use_threads(2)
    rows = 500
    with WIDE.program() as program:
        while True:
            callers = [threading.Thread(target=program.run, args=(WIDE.inputs(rows),)) for _ in range(2)]
            for caller in callers:
                caller.start()
            while not all_compute() and all(caller.is_alive() for caller in callers):
                time.sleep(0.01)
            before = helped(native)
            time.sleep(0.1)
            after = helped(native)
            running = all(caller.is_alive() for caller in callers)
            for caller in callers:
                caller.join()
            if running:
                break
            rows *= 2
    assert after == before


@pytest.mark.usefixtures("threads")
def test_many_callers_get_what_lone_ones_get():
    library.use_threads(4)
    programs = [
        block.program(chunk=3, row_by_row=seed % 2 == 1) for seed, block in enumerate([WIDE, Block(), Block(seed=1)])
    ]
    inputs = {rows: [block.inputs(rows) for block in (WIDE, Block(), Block(seed=1))] for rows in (1, 2, 5)}
    wanted = {rows: [p.run(i) for p, i in zip(programs, given, strict=True)] for rows, given in inputs.items()}
    wrong: list[str] = []

    def call(caller: int) -> None:
        rng = np.random.default_rng(caller)
        for _ in range(30):
            rows, which = int(rng.choice(list(inputs))), int(rng.integers(3))
            for found, want in zip(programs[which].run(inputs[rows][which]), wanted[rows][which], strict=True):
                if not np.allclose(found, want, rtol=1e-6, atol=1e-6):
                    wrong.append(f"caller {caller}: {rows} rows of program {which}")

    callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.usefixtures("threads")
def test_number_of_threads_may_change_while_calls_run():
    inputs = WIDE.inputs(4)
    with WIDE.program() as program:
        wanted = program.run(inputs)[0]
        found = []
        caller = threading.Thread(target=lambda: found.extend(program.run(inputs)[0] for _ in range(40)))
        caller.start()
        count = 0
        while caller.is_alive():
            count += 1
            library.use_threads(1 + count * 7 % 9)
        caller.join()
    assert len(found) == 40
    for one in found:
        np.testing.assert_allclose(one, wanted, rtol=1e-6, atol=1e-6)


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    begin = """
        import os, signal, sys, threading, time
        import numpy as np
        from condconv_serve.runtime.kernels import library
        from tests.unit.runtime.native_kernels.blocks import Block

        block = Block(size=14, channels=64, expanded=384)
        program = block.program()
        inputs = block.inputs(2)
        wanted = program.run(inputs)[0]
        library.use_threads(4)
        for _ in range(20):
            program.run(inputs)

        def name(task):
            try:
                return open(f"/proc/self/task/{task}/comm").read()
            except OSError:  # it has ended meanwhile
                return ""

        def helpers():
            return sum(name(task) == "condconv\\n" for task in os.listdir("/proc/self/task"))

        def compute_with_helpers(count):
            until = time.monotonic() + 60
            while helpers() < count and time.monotonic() < until:  # the machine may have no cores for them
                assert np.allclose(program.run(inputs)[0], wanted, rtol=1e-6, atol=1e-6)
    """
    script = textwrap.dedent(begin) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)


@pytest.mark.usefixtures("native")
def test_process_ends_while_calls_run():
    done = run_script("""
        def forever():
            while True:
                program.run(inputs)

        for _ in range(3):
            threading.Thread(target=forever, daemon=True).start()
        print("end")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.usefixtures("native")
def test_child_of_a_fork_computes_alone_and_may_have_threads_of_its_own():
    done = run_script("""
        for count in (None, 3):
            child = os.fork()
            if not child:
                native = library.load()
                if count:
                    library.use_threads(count)
                before = native.cc_helped()
                for _ in range(100):
                    assert np.allclose(program.run(inputs)[0], wanted, rtol=1e-6, atol=1e-6)
                assert count or native.cc_helped() == before
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert np.allclose(program.run(inputs)[0], wanted, rtol=1e-6, atol=1e-6)
    """)
    assert (done.returncode, done.stdout) == (0, "0\n0\n"), done.stderr


@pytest.mark.usefixtures("native")
def test_signals_are_for_the_programs_own_threads():
    done = run_script("""
        for line in open(f"/proc/self/task/{os.getpid()}/status"):
            if line.startswith("SigBlk"):
                assert int(line.split()[1], 16) == 0
        compute_with_helpers(3)
        masks = []
        for task in os.listdir("/proc/self/task"):
            status = dict(line.split(":", 1) for line in open(f"/proc/self/task/{task}/status"))
            if status["Name"].strip() == "condconv":
                masks.append(int(status["SigBlk"], 16))
        print(len(masks), all(mask >> (signal.SIGTERM - 1) & 1 for mask in masks))
    """)
    assert (done.returncode, done.stdout) == (0, "3 True\n"), done.stderr


def test_idle_helpers_take_no_processor_time(native):
    done = run_script("""
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        print(time.process_time() - before < 0.05)
    """)
    assert done.stdout == "True\n", done.stderr


def test_helpers_end_when_there_are_fewer_threads(native):
    done = run_script("""
        library.use_threads(2)
        until = time.monotonic() + 60
        while helpers() > 1 and time.monotonic() < until:
            time.sleep(0.01)
        print(helpers())
        library.use_threads(4)
        compute_with_helpers(3)
        print(helpers())
    """)
    assert done.stdout == "1\n3\n", done.stderr


def compiled(folder: Path, name: str, *flags: str) -> Path:
    """A program of the team alone and of a C file that lies here; skips where it can't be compiled."""
    try:
        compiler = build.find_compiler()
        sources = [str(Path(__file__).with_name(name)), str(build.SOURCES / "team.c")]
        compiler.run(*flags, "-std=gnu11", f"-I{build.SOURCES}", *sources, "-o", "program", "-lpthread", within=folder)
    except build.NoCompiler as error:
        pytest.skip(str(error))
    except build.CompileError as error:
        if not flags:
            raise
        pytest.skip(f"the compiler has no ThreadSanitizer: {str(error).splitlines()[-1]}")
    return folder / "program"


def test_races(tmp_path):
    """The team alone, in C, under ThreadSanitizer."""
    program = compiled(tmp_path, "team_races.c", "-fsanitize=thread", "-O1", "-g")
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_nothing_is_shared_for_a_while_when_a_helper_was_put_aside(tmp_path):
    done = subprocess.run([compiled(tmp_path, "team_pauses.c")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "2 1 2\n"), done.stderr
