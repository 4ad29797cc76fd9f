"""The peers of `service_peers.py`: other servers with the same weights, each as its users would set it up.

`python service_contestants.py NAME WORK PORT` serves until it is ended; `POST /predict` (Mosec: `/inference`) takes a
JPEG, for LitServe in a form. All decode with Pillow, take the central crop, resize to 224 pixels, and answer with the
five best classes.
"""

import heapq
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contestants
import numpy as np
from fastapi import FastAPI, Request
from PIL import Image

CROP, SIZE = 0.875, 224


def row(data: bytes) -> Any:
    """A JPEG as float32 `[3, 224, 224]`, normalised."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = int(min(image.size) * CROP)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    resized = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return contestants.channels_first(np.asarray(resized)[None])[0]


def best(logits: Any) -> dict[str, list[Any]]:
    """The answer."""
    exponentials = np.exp(logits - logits.max())
    classes = heapq.nlargest(5, range(len(logits)), key=logits.__getitem__)
    return {"classes": classes, "probabilities": [float(exponentials[i] / exponentials.sum()) for i in classes]}


def litserve(work: Path, port: int) -> None:
    """LitServe with timm on PyTorch: a worker process per core, each with one thread and batches of up to 4."""
    import litserve as ls

    os.environ["SERVICE_WORK"] = str(work)
    api = LitServeAPI(max_batch_size=4, batch_timeout=0.005)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=contestants.CORES)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


def mosec(work: Path, port: int) -> None:
    """Mosec with ONNX Runtime: a worker process per core, each with one thread, for one image at a time."""
    sys.argv = [sys.argv[0], "--port", str(port), "--address", "127.0.0.1", "--log-level", "warning"]
    import mosec as library

    os.environ["SERVICE_WORK"] = str(work)
    server = library.Server()
    server.append_worker(MosecWorker, num=contestants.CORES, max_batch_size=1)
    server.run()


def fastapi(work: Path, port: int) -> None:
    """FastAPI without batching over our engine: each request computes its own image, on one of a few threads."""
    import uvicorn
    from fastapi.concurrency import run_in_threadpool

    engine = contestants.native(work, precision="float32")
    app = FastAPI()

    def classify(data: bytes) -> dict[str, list[Any]]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = int(min(image.size) * CROP)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        resized = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return best(engine.compute(np.asarray(resized)[None])[0])

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, list[Any]]:
        return await run_in_threadpool(classify, await request.body())

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


SERVERS: dict[str, Callable[[Path, int], None]] = {
    "LitServe, timm f32": litserve,
    "Mosec, ONNX Runtime f32": mosec,
    "FastAPI, our engine f32": fastapi,
}

# Both start their workers by spawning, for which their classes must be at the top of a module.
if __name__ in ("__main__", "__mp_main__"):
    import litserve as _litserve
    import mosec as _mosec

    class LitServeAPI(_litserve.LitAPI):  # type: ignore[misc]
        """Decodes in the server's process, computes in the workers."""

        def setup(self, device: str) -> None:
            """Load the model."""
            import torch

            torch.set_num_threads(1)
            self.torch = torch
            work = Path(os.environ["SERVICE_WORK"])
            self.model = contestants.timm_model(work).eval().to(memory_format=torch.channels_last)

        def decode_request(self, request: Request) -> Any:
            """Take the form's file: LitServe hands on JSON and forms only."""
            return row(request["image"].file.read())  # type: ignore[index]

        def batch(self, inputs: list[Any]) -> Any:
            """Stack rows."""
            return self.torch.from_numpy(np.stack(inputs)).to(memory_format=self.torch.channels_last)

        def predict(self, batch: Any) -> Any:
            """Compute; a lone row comes without `batch`."""
            with self.torch.inference_mode():
                return self.model(batch).numpy()

        def unbatch(self, output: Any) -> Any:
            """Give each its own."""
            return list(output)

        def encode_response(self, output: Any) -> Any:
            """Answer."""
            return best(output)

    class MosecWorker(_mosec.Worker):  # type: ignore[misc]
        """Decodes and computes one image."""

        def __init__(self) -> None:
            """Load the model."""
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            path = Path(os.environ["SERVICE_WORK"]) / "b1.onnx"
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name

        def deserialize(self, data: bytes) -> bytes:
            """Take the body as it is."""
            return data

        def forward(self, data: bytes) -> dict[str, list[Any]]:
            """Classify."""
            return best(self._session.run(None, {self._input: row(data)[None]})[0][0])


if __name__ == "__main__":
    SERVERS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
