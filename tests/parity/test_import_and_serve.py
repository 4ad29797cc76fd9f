"""From a file with published weights to answers over HTTP, against outputs of the public implementations.

Everything is as a user has it: the command line imports (in a process of its own, but for the tiny network), a server
process serves, and the photographs themselves are sent. The weights are random, which makes the networks chaotic:
pixels rounded to whole levels move a log-probability by anything up to hundreds. So this also proves that a photograph
becomes the very pixels that the references were given.
"""

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.imaging import model_row
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import open_bundle
from tests.e2e.server import ROOT, Server, environment
from tests.golden import GOLDEN, needs_golden
from tests.parity.golden_models import FULL_SIZE, TINY, GoldenModel, log_softmax
from tests.unit.store.samples import PLAN

pytestmark = needs_golden
IN_PROCESS = 1e-4
"""Relative to the largest logit; routing weights absolute."""
MOST_SECONDS, MOST_MEMORY = 60, 2e9
"""That an import may take: seconds of the processors, and bytes of memory."""
OVER_HTTP, OVER_HTTP_TINY = 1e-3, 1e-4
"""Absolute, of log-probabilities and routing weights."""


@dataclass(frozen=True)
class Run:
    """What a process said and took: seconds of the processors, and the most memory that it ever had, in bytes."""

    output: str
    seconds: float
    memory: int


def condconv(*arguments: object) -> Run:
    """Run the command line as a process of its own."""
    before = processor_seconds()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "condconv_serve", *map(str, arguments)],
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        memory = 0
        while process.poll() is None:
            memory = max(memory, peak_memory(process.pid))
            time.sleep(0.01)
        output.seek(0)
        said = output.read()
    assert process.returncode == 0, said
    return Run(said, processor_seconds() - before, memory)


def condconv_here(*arguments: object) -> str:
    """Run the command line in this process, which has TensorFlow already."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def processor_seconds() -> float:
    """What all children that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_memory(process_id: int) -> int:
    """The most memory that a process has had so far, in bytes; 0 if it has ended.

    What the system tells of a child that has ended includes the memory of the process that it was forked from.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def import_golden(model: GoldenModel, directory) -> None:
    source = model.write(directory / "source")
    wishes = ("--architecture", model.architecture, "--name", model.name, *model.options)
    arguments = ("models", "import", source, *wishes, "--model-store", directory / "store")
    if model is TINY:
        assert "wrote" in condconv_here(*arguments)
        return
    run = condconv(*arguments)
    assert "wrote" in run.output
    assert run.seconds < MOST_SECONDS
    assert run.memory < MOST_MEMORY
    print(f"{model.name}: imported in {run.seconds:.1f} s with {run.memory / 1e6:.0f} MB")


def photographs(outputs) -> list[bytes]:
    return [(GOLDEN / "images" / str(name)).read_bytes() for name in outputs["images"]]


@pytest.fixture(
    scope="module",
    params=[TINY, *(pytest.param(model, marks=pytest.mark.full_parity) for model in FULL_SIZE)],
    ids=lambda model: model.name,
)
def golden(request, tmp_path_factory):
    """A golden model in a store of its own."""
    directory = tmp_path_factory.mktemp("parity")
    (directory / "source").mkdir()
    import_golden(request.param, directory)
    _, outputs = request.param.read()
    return request.param, directory / "store", outputs


def test_in_process(golden, assert_close):
    model, store, outputs = golden
    served = load_model(open_bundle(store / model.name / "1"), PLAN)
    try:
        rows = [model_row(photo, served, max_pixels=10**6).row for photo in photographs(outputs)]
        found = [served.engine(np.stack(rows[start : start + 4])) for start in (0, 4)]
    finally:
        served.engine.close()
    assert_close(np.concatenate([part["logits"] for part in found]), outputs["logits"], IN_PROCESS)
    assert_close(np.concatenate([part["routing"] for part in found]), outputs["routing"], IN_PROCESS)


@pytest.mark.full_parity  # the tiny network, too
def test_over_http(golden):
    model, store, outputs = golden
    classes = outputs["logits"].shape[1]
    expected = log_softmax(outputs["logits"])
    most = OVER_HTTP_TINY if model is TINY else OVER_HTTP
    with Server(real=True, model_store=store, precision="float32", max_batch_size=1) as server:
        for number, photo in enumerate(photographs(outputs)):
            response = server.client.post(
                "/predict", params={"model": model.name, "top_k": classes, "routing": True}, content=photo
            )
            assert response.status_code == 200, response.text
            (entry,) = response.json()["predictions"]
            scores = {scored["index"]: scored["probability"] for scored in entry["classes"]}
            found = np.log([scores[index] for index in range(classes)])
            routing = np.array(list(entry["routing"].values()))
            assert list(entry["routing"]) == sorted(entry["routing"], key=lambda block: int(block.split("_")[1]))
            np.testing.assert_allclose(found, expected[number], rtol=0, atol=most)
            np.testing.assert_allclose(routing, outputs["routing"][number], rtol=0, atol=most)
