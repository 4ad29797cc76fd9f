"""The metrics of several processes, added up: with real processes, some of which are killed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from condconv_serve.telemetry.exposition import CombinedExposition, RegistryExposition, add_up, written
from condconv_serve.telemetry.front_files import FrontFiles
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.routing_metrics import BlockRouting
from tests.unit.telemetry import counting_front

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Front:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def count(self, number: int) -> None:
        self.tell(f"{number}\n")
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "counted\n"

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running(files: FrontFiles, number: int) -> Iterator[list[Front]]:
    env = {**os.environ, **files.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        started: list[Front] = []
        for _ in range(number):
            process = subprocess.Popen(
                [sys.executable, "-m", counting_front.__name__],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(Front(process))
        yield started


class Engine:
    """The engine process: what only it knows, with a function and a collector."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.metrics.ready.set_function(lambda: 1)
        self.metrics.queue_rows.set(7)
        self.metrics.requests.labels("native", "/predict", "POST", 200, "").inc(5)
        block = BlockRouting(
            model="m", version="1", block="b", buckets=[[1] * 10], sums=[0.05], entropy=0.5, drift={"psi": 0.25}
        )
        self.metrics.routing.set_source(lambda: [block])

    async def families(self) -> list[Metric]:
        """As another process gets them."""
        found: list[Metric] = pickle.loads(pickle.dumps(list(self.metrics.registry.collect())))
        return found


def samples_of(families: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in families
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found), "a sample twice"
    return {place: value for place, value in found if not place[0].startswith(("process_", "python_"))}


def total(files: FrontFiles, name: str, **labels: str) -> float | None:
    return samples_of(files.families()).get((name, frozenset(labels.items())))


async def test_engine_and_fronts_look_like_one_process(tmp_path: Path) -> None:
    files, engine, alone = FrontFiles(tmp_path), Engine(), Engine()
    exposition = CombinedExposition(engine.families, files)
    with running(files, 2) as (one, other):
        one.count(3)
        other.count(2)
        for number in (3, 2):
            counting_front.count(alone.metrics, number)
        alone.metrics.lingering_connections.set(3 + 2)
        alone.metrics.queue_rows.set(7)
        expected = samples_of(alone.metrics.registry.collect())
        for parse, accept in ((parse_text, ""), (parse_openmetrics, OPENMETRICS)):
            found = await exposition.expose(accept)
            assert ("openmetrics" in found.content_type) == bool(accept)
            whole = await RegistryExposition(alone.metrics.registry).expose(accept)
            assert found.content_type == whole.content_type
            here, there = (
                {
                    place: value
                    for place, value in samples_of(parse(text.content.decode())).items()
                    if not place[0].endswith("_created")
                }
                for text in (found, whole)
            )
            assert here == pytest.approx(there)
            assert len(here) >= len([place for place in expected if not place[0].endswith("_created")])
        memory = next(
            family
            for family in parse_text((await exposition.expose("")).content.decode())
            if family.name == "process_resident_memory_bytes"
        )
        own = engine.metrics.registry.get_sample_value("process_resident_memory_bytes")
        assert own is not None
        assert memory.samples[0].value > own + 20e6, "the fronts' memory counts"


def test_what_a_killed_front_has_counted_stays_and_its_gauges_go(tmp_path: Path) -> None:
    files = FrontFiles(tmp_path)
    requests = {"front": "native", "route": "/predict", "method": "POST", "code": "200", "deadline": ""}
    with running(files, 3) as fronts:
        for number, front in enumerate(fronts, start=1):
            front.count(number)
        before = samples_of(files.families())
        assert total(files, "condconv_requests_total", **requests) == 6
        assert total(files, "condconv_lingering_connections") == 6
        fronts[1].tell("for ever\n")
        while not (padded := total(files, "condconv_padding_rows_total")):
            pass
        for front, left in ((fronts[1], 4), (fronts[2], 1)):
            front.kill()
            last = total(files, "condconv_padding_rows_total")
            files.gone(front.pid)
            assert total(files, "condconv_padding_rows_total") == last
            assert total(files, "condconv_lingering_connections") == left
        assert last is not None
        assert last >= padded
        after = samples_of(files.families())
        changed = {name for (name, labels), value in after.items() if before.get((name, labels)) != value}
        assert changed == {"condconv_padding_rows_total", "condconv_lingering_connections"}
        assert after.keys() == before.keys()
        names = sorted(file.name.rpartition("_")[2] for file in tmp_path.glob("*_*.db"))
        assert set(names) == {"0.db", f"{fronts[0].pid}.db"}, "a front that has ended leaves no file of its own"
        fronts[0].count(4)
        assert total(files, "condconv_requests_total", **requests) == 10


@pytest.mark.parametrize("content", [b"", b"\xff" * 4096, b"\x40\x00\x00\x00" + bytes(60), bytes(65536), b"\x00"])
@pytest.mark.parametrize("kind", ["counter", "histogram", "gauge_livesum"])
def test_a_file_that_was_cut_short_spoils_nothing(kind: str, content: bytes, tmp_path: Path) -> None:
    files = FrontFiles(tmp_path)
    (tmp_path / f"{kind}_77.db").write_bytes(content)
    assert files.families() == []
    files.gone(77)
    assert files.families() == []
    assert not list(tmp_path.glob("*_77.db"))


def test_families_add_up_whatever_labels_each_process_has_seen() -> None:
    registries = [CollectorRegistry() for _ in range(3)]
    for number, registry in enumerate(registries):
        metrics = Metrics(registry)
        metrics.rows.end("m", [("answered", "")] * (1 + number))
        for model in ("m0", "m1")[: 2 - min(number, 1)]:
            metrics.batch_size.labels(model).observe(2)
    families = [list(registry.collect()) for registry in registries]
    for family in families[0]:  # as some versions of the library read files
        family.samples.sort(key=lambda sample: sample.name)
    summed = add_up(*families)
    assert list(parse_openmetrics(written(summed, OPENMETRICS).content.decode())), "samples in their order"
    found = samples_of(summed)
    labels = {"model": "m", "outcome": "answered", "deadline": ""}
    assert found["condconv_rows_total", frozenset(labels.items())] == 6
    for model, images in (("m0", 3), ("m1", 1)):
        for le, times in (("1.0", 0), ("2.0", images), ("+Inf", images)):
            assert found["condconv_batch_size_bucket", frozenset({("model", model), ("le", le)})] == times
