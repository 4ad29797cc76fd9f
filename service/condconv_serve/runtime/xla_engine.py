"""XLA compiles the network for GPU and TPU: fixed batch sizes, one copy of the weights per device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from condconv_serve.domain import Preprocessing, Row, Tensors
from condconv_serve.runtime.inference_graph import inference_function
from condconv_serve.runtime.lowering import XLA
from condconv_serve.runtime.plan import Precision
from condconv_serve.runtime.tensorflow_engine import reporting_memory
from condconv_serve.telemetry.metrics import Metrics


class XlaEngine:
    """Computes batches on one or several devices; stream `i` uses device `i % len(devices)`.

    Batches are padded to the next power of two, since XLA compiles each size separately.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocessing: Preprocessing,
        *,
        devices: tuple[str, ...],
        precision: Precision,
        max_batch_size: int,
        metrics: Metrics | None = None,
    ) -> None:
        """Put the weights on every device. Each batch size is compiled when it is first computed.

        Args:
            model: takes normalised pixels, returns `logits` and `routing`, as for `freeze`.
            preprocessing: its mean and standard deviation go into the computation.
            devices: TensorFlow's names, such as "GPU:0".
            precision: of the convolutions; routing and logits are always float32.
            max_batch_size: the largest size that is compiled.
            metrics: counts padding rows; None if nobody does.
        """
        self._metrics = metrics
        self._row_type = preprocessing.row_type
        self.batch_sizes = tuple(sorted({min(1 << n, max_batch_size) for n in range(max_batch_size.bit_length() + 1)}))
        self._devices: list[tuple[str, Any]] = []
        dtype = tf.bfloat16 if precision == "bfloat16" else tf.float32
        for device in devices:
            with tf.device(device):
                infer = inference_function(model, preprocessing, replace(XLA, dtype=dtype))
            self._devices.append((device, tf.function(infer, jit_compile=True, autograph=False)))

    def __call__(self, rows: Row, stream: int = 0) -> Tensors:
        """Compute `[B, image_size, image_size, 3]` on the stream's device."""
        device, infer = self._devices[stream % len(self._devices)]
        rows = rows.astype(self._row_type, casting="safe", copy=False)  # another type would be compiled once more
        count = len(rows)
        outputs = [
            self._compute(device, infer, rows[start : start + self.batch_sizes[-1]])
            for start in range(0, count, self.batch_sizes[-1])
        ]
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}

    def _compute(self, device: str, infer: Any, rows: Row) -> Tensors:
        count = len(rows)
        size = next(size for size in self.batch_sizes if size >= count)
        if size > count:
            rows = np.concatenate([rows, np.zeros((size - count, *rows.shape[1:]), rows.dtype)])
            if self._metrics is not None:
                self._metrics.padding_rows.inc(size - count)
        with tf.device(device), reporting_memory():
            outputs = infer(tf.constant(rows))
        return {name: values.numpy()[:count] for name, values in outputs.items()}

    def close(self) -> None:
        """Release the weights and the compiled code."""
        self._devices.clear()
