"""OpenVINO reads and runs the same frozen graph on the CPU; it fuses swish and the SE product into its convolutions."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from condconv_serve.domain import Row, Tensors
from condconv_serve.runtime.inference_graph import InferenceGraph
from condconv_serve.runtime.plan import Precision
from condconv_serve.telemetry.metrics import Metrics

_LONE = "lone"
_HALVED_FROM = 8
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINOEngine:
    """Computes batches of an inference graph.

    The graph folds the batch into the channels of its depthwise convolutions, whose number OpenVINO must know, and each
    compiled size holds its own packed copy of the weights. So just a few sizes are compiled, single rows, full batches
    and halves of large ones, and other batches are put together from these; and single rows once more, for all cores
    together, which a row gets that is alone in the engine.
    """

    def __init__(
        self,
        graph: InferenceGraph,
        *,
        precision: Precision,
        streams: int,
        threads_per_stream: int,
        max_batch_size: int,
        metrics: Metrics | None = None,
    ) -> None:
        """Read and compile the graph.

        Args:
            graph: what to compute.
            precision: of the convolutions.
            streams: batches computed at once.
            threads_per_stream: threads that share one batch.
            max_batch_size: the largest size.
            metrics: counts padding rows.

        Raises:
            RuntimeError: OpenVINO can't read or compile it.
        """
        self._row_type, self._outputs = graph.row_type, graph.outputs
        core = openvino.Core()
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "graph.pb"
            file.write_bytes(graph.graph_def.SerializeToString())
            model = core.read_model(file)
        # The shapes that OpenVINO's reader leaves behind as outputs would only be copied out of every batch.
        model = openvino.Model([model.output(f"{name}:0") for name in graph.outputs], model.get_parameters())
        cores = streams * threads_per_stream

        def compiled(size: int, streams: int) -> Any:
            model.reshape([size, graph.image_size, graph.image_size, 3])
            hint = "LATENCY" if streams == 1 else "THROUGHPUT"
            config = {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": cores,
                "PERFORMANCE_HINT": hint,
                # Decoders need the same cores; a pinned thread would wait for its own while another one is free.
                "ENABLE_CPU_PINNING": False,
            }
            return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": _HINTS[precision], **config})

        self._sizes = compiled_sizes(max_batch_size)
        self._compiled = {str(size): compiled(size, streams) for size in self._sizes}
        if streams > 1:
            self._compiled[_LONE] = compiled(1, 1)
        self._calls = 0
        self._calls_lock = threading.Lock()
        self._metrics = metrics
        self._requests = threading.local()

    def __call__(self, rows: Row, stream: int = 0) -> Tensors:
        """Compute `[B, image_size, image_size, 3]`; any stream may."""
        rows = rows.astype(self._row_type, casting="safe", copy=False)
        with self._calls_lock:
            self._calls += 1
            alone = self._calls == 1
        try:
            if alone and len(rows) == 1 and _LONE in self._compiled:
                return self._infer(np.ascontiguousarray(rows), _LONE)
            return self._in_pieces(rows)
        finally:
            with self._calls_lock:
                self._calls -= 1

    def _in_pieces(self, rows: Row) -> Tensors:
        outputs, start = [], 0
        for count, size in split(len(rows), self._sizes):
            found = self._infer(_padded(rows[start : start + count], size), str(size))
            outputs.append({name: values[:count] for name, values in found.items()})
            start += count
            if self._metrics is not None:
                self._metrics.padding_rows.inc(size - count)
        return {name: np.concatenate([part[name] for part in outputs]) for name in self._outputs}

    def _infer(self, rows: Row, graph: str) -> Tensors:
        requests: dict[str, Any] = self._requests.__dict__.setdefault("by_graph", {})
        if graph not in requests:
            requests[graph] = self._compiled[graph].create_infer_request()
        request = requests[graph]
        request.infer({0: rows}, share_inputs=True)
        return {name: request.get_output_tensor(place).data.copy() for place, name in enumerate(self._outputs)}

    def close(self) -> None:
        """Release the compiled graphs."""
        self._compiled.clear()
        self._requests = threading.local()


def compiled_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The sizes to compile, the largest first."""
    halves = (max_batch_size // 2,) if max_batch_size >= _HALVED_FROM else ()
    return tuple(dict.fromkeys((max_batch_size, *halves, 1)))


def split(rows: int, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Put a number of rows together from pieces of some sizes, the largest first and 1 among them.

    Returns:
        How many rows each piece holds, and its size; a piece that is three quarters full is padded, since that takes
        no longer than smaller pieces would.
    """
    pieces = []
    for size in sizes:
        while 4 * rows >= 3 * size:
            pieces.append((min(rows, size), size))
            rows -= min(rows, size)
    return pieces


def _padded(rows: Row, size: int) -> Row:
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
