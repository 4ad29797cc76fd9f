"""The real server, whose networks are stand-ins that need no TensorFlow: it is ready after a second or two.

Run as `python -m tests.contract.fake_server serve ...`; `predict` and `routing` work, too. Command line, settings,
store, HTTP, decoding and batching are the real ones. If the environment variable `FAULT_FILE` names a file, what stands
in it goes wrong:

    hold ANYTHING      a batch that begins now ends when the file says something else
    slow SECONDS       every batch takes that long
    broken             every batch raises
    memory ROWS        larger batches find no memory
    hold load          a model that is to be loaded now is loaded when the file says something else
    only VERSION ...   what follows goes wrong with this version alone
    after ROWS ...     what follows goes wrong once a model has begun so many rows since the file says so

Pictures of the colours `POISON` and `HANG` make their batch raise or hang without a file.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import typer.main
from numpy.typing import NDArray
from prometheus_client import values

from condconv_serve import ablation_loading, bootstrap
from condconv_serve.cli import app, main
from condconv_serve.cluster.workers import spawning
from condconv_serve.cluster.workers.child import run as child_process
from condconv_serve.cluster.workers.spawning import Child
from condconv_serve.domain import (
    FEATURES,
    LOGITS,
    ROUTING,
    Cost,
    ModelInfo,
    OutputSpec,
    RoutingLayout,
    RoutingOverrides,
    Row,
    ServedModel,
    Tensors,
)
from condconv_serve.errors import BundleError, OutOfMemory
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.store import Bundle, read_labels, read_profile, read_weights
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import (
    ColourAblation,
    ColourDetector,
    FakeEngine,
    changed_weights,
    detector_outputs,
    served_model,
)

POISON = (255, 0, 255)
"""A picture of this colour makes its batch raise."""
HANG = (0, 255, 255)
"""A picture of this colour makes its batch hang."""
CHILD = "child"
"""The first argument of a child of a server with workers; the second is the number of its connection."""
PATCHES = 8
"""A picture is taken for so many times so many patches of one colour each."""
PATCH_FEATURES = 3 * PATCHES**2
IMPORTED_WHEN_USED = (
    "anyio._backends._asyncio",
    "condconv_serve.serve",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
)
"""What a server imports only once it runs."""
_LOOK_AGAIN = 0.005


class PatchEngine(FakeEngine):
    """Answers each picture by the colours of its patches, so that different photos get different answers.

    What it computes with is random, but the same in every process. Its features are the patches' colours.
    """

    def __init__(self, layout: RoutingLayout, bias: NDArray[np.float32]) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        self.layout, self._bias = layout, bias
        self._logits = random.normal(0, 0.5, (PATCH_FEATURES, len(bias))).astype(np.float32)
        self._routing = random.normal(0, 0.1, (PATCH_FEATURES, *layout.shape)).astype(np.float32)

    def compute(self, rows: Row, stream: int) -> Tensors:
        """Compute all rows."""
        side = rows.shape[1] // PATCHES
        patches = rows[:, : PATCHES * side, : PATCHES * side].reshape(-1, PATCHES, side, PATCHES, side, 3)
        features = (patches.mean(axis=(2, 4), dtype=np.float32) / 64 - 2).reshape(len(rows), -1)
        routing = 1 / (1 + np.exp(-np.einsum("bf,fke->bke", features, self._routing)))
        logits = features @ self._logits + self._bias
        return {LOGITS: logits, ROUTING: routing * self.layout.own, FEATURES: features}


class PatchAblation:
    """The ablation of a `PatchEngine`: weights that were changed make all of its logits larger or smaller."""

    def __init__(self, engine: PatchEngine) -> None:
        self._engine = engine

    def __call__(self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool]) -> Tensors | None:
        """Compute all variants, unless stopped."""
        if stopped():
            return None
        alone, layout = self._engine(row[None]), self._engine.layout
        own = alone[ROUTING][0]
        used = changed_weights(own, overrides, layout)
        logits = alone[LOGITS] * (used.sum(axis=(1, 2)) / own.sum())[:, None]
        return {
            LOGITS: np.concatenate([alone[LOGITS], logits]).astype(np.float32),
            ROUTING: np.concatenate([own[None], used]).astype(np.float32),
        }

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class FaultyEngine:
    """An engine that does what the fault file says."""

    def __init__(self, engine: FakeEngine, file: Path | None, *, version: str) -> None:
        self._engine = engine
        self._file = file
        self._version = version
        self._lock = threading.Lock()
        self._said, self._begun = "", 0

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        """Compute, or fail."""
        words = said = fault(self._file).split()
        begun = self._begun_before(" ".join(said), len(rows))
        if words[:1] == ["only"]:
            words = words[2:] if words[1] == self._version else []
        if words[:1] == ["after"]:
            words = words[2:] if begun >= int(words[1]) else []
        match words:
            case ["broken"]:
                raise RuntimeError("cannot compute with /secret/path")
            case ["slow", seconds]:
                time.sleep(float(seconds))
            case ["memory", most] if len(rows) > int(most):
                raise OutOfMemory("The engine is out of memory.", retry_after=5.0)
            case ["hold", what] if what != "load":
                wait_while(self._file, " ".join(said))
        if _any_of(rows, POISON):
            raise RuntimeError("cannot compute with /secret/path")
        if _any_of(rows, HANG):
            time.sleep(3600)
        return self._engine(rows, stream)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _begun_before(self, said: str, rows: int) -> int:
        """How many rows were begun before these since the file says so."""
        with self._lock:
            if said != self._said:
                self._said, self._begun = said, 0
            self._begun += rows
            return self._begun - rows


def load_fake(
    bundle: Bundle, plan: EnginePlan, *, metrics: Metrics | None = None, file: Path | None = None
) -> ServedModel:
    """Make a stand-in of a bundle's network: its labels, blocks and the biases of its classes are the bundle's.

    A detector is a `ColourDetector`.

    Raises:
        BundleError: there are no biases.
    """
    wait_while(file, "hold load")
    weights, labels, profile = read_weights(bundle), read_labels(bundle), read_profile(bundle)
    detects = bundle.manifest.task == "detection"
    if not detects and "logits/bias" not in weights:
        raise BundleError(f"{bundle.manifest.name}/{bundle.manifest.version}: logits/bias is missing.")
    layout = layout_of(weights)
    info = ModelInfo(
        manifest=bundle.manifest,
        labels=labels,
        preprocessing=bundle.manifest.preprocessing.to_domain(),
        outputs=detector_outputs(labels, layout)
        if detects
        else (
            OutputSpec(LOGITS, (len(labels),)),
            OutputSpec(ROUTING, layout.shape),
            OutputSpec(FEATURES, (PATCH_FEATURES,)),
        ),
        routing=layout,
        cost=Cost(parameters=sum(tensor.size for tensor in weights.values()), multiply_adds=None),
        model_card=bundle.model_card,
        routing_profile=profile,
    )
    engine: FakeEngine = (
        ColourDetector(classes=len(labels), layout=layout) if detects else PatchEngine(layout, weights["logits/bias"])
    )
    return served_model(info, FaultyEngine(engine, file, version=bundle.manifest.version))


def make_fake_ablation(bundle: Bundle, plan: EnginePlan) -> PatchAblation | ColourAblation:
    """Make a stand-in of what ablates a bundle's network."""
    weights = read_weights(bundle)
    if bundle.manifest.task == "detection":
        return ColourAblation(ColourDetector(classes=len(read_labels(bundle)), layout=layout_of(weights)))
    return PatchAblation(PatchEngine(layout_of(weights), weights["logits/bias"]))


def layout_of(weights: dict[str, NDArray[np.float32]]) -> RoutingLayout:
    """The blocks that a bundle has weights of routing for."""
    found = {}
    for name, tensor in weights.items():
        if block := re.fullmatch(r"block_(\d+)_routing/bias", name):
            found[int(block[1])] = len(tensor)
    return RoutingLayout.of({f"block_{number}": found[number] for number in sorted(found)})


def fault(file: Path | None) -> str:
    """What is to go wrong now."""
    return file.read_text() if file else ""


def wait_while(file: Path | None, says: str) -> None:
    """Come back when the file says something else."""
    while fault(file) == says:
        time.sleep(_LOOK_AGAIN)


def _any_of(rows: Row, colour: tuple[int, int, int]) -> bool:
    middle = rows.shape[1] // 2
    return bool((np.abs(rows[:, middle, middle].astype(int) - colour).max(axis=1) <= 2).any())


def prepare() -> None:
    """Do once what each of the servers that are forked would take a third of its start for."""
    for imported_when_used in IMPORTED_WHEN_USED:
        importlib.import_module(imported_when_used)
    typer.main.get_command = cache(typer.main.get_command)
    typer.main.get_command(app)


def run() -> NoReturn:
    """Run the command line, or a child of a server with workers, with stand-ins of networks."""
    name = os.environ.get("FAULT_FILE")
    bootstrap.import_engines = cache(lambda: None)
    ablation_loading.make_ablation = make_fake_ablation
    bootstrap.load_model = partial(load_fake, file=Path(name) if name else None)
    if sys.argv[1:2] == [CHILD]:
        sys.exit(child_process(socket.socket(fileno=int(sys.argv[2]))))
    # A library that was loaded before all others may have locks that a fork leaves locked for ever; libfaketime does.
    spawning.spawn = start_child if "LD_PRELOAD" in os.environ else fork
    main()


class Forked:
    """A forked child, as the supervising process sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        if self._code is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self._code = os.waitstatus_to_exitcode(ended[1])
        return self._code

    def kill(self) -> None:
        """Kill it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def start_child(connection: socket.socket, variables: Mapping[str, str]) -> Child:
    """Start a child of a server with workers in a new interpreter."""
    number = connection.fileno()
    command = [sys.executable, "-m", "tests.contract.fake_server", CHILD, str(number)]
    return subprocess.Popen(command, pass_fds=[number], env={**os.environ, **variables}, process_group=0)


def fork(connection: socket.socket, variables: Mapping[str, str]) -> Child:
    """Start a child of a server with workers, by a fork: a new interpreter would take a second, for each of hundreds.

    It keeps nothing of its parent's but its standard streams and its connection.
    """
    if child := os.fork():
        return Forked(child)
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as a new interpreter does
        os.setpgid(0, 0)
        keep = os.dup2(connection.detach(), 3)
        os.closerange(keep + 1, 4096)
        logging.getLogger().handlers.clear()
        os.environ.update(variables)
        values.ValueClass = values.get_value_class()  # as when the library is imported
        code = child_process(socket.socket(fileno=keep))
    finally:
        logging.shutdown()
        os._exit(code)


if __name__ == "__main__":
    run()
