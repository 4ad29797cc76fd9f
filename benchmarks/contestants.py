"""The contestants of `engine_peers.py`: each computes the same weights in a process of its own.

As `python contestants.py prepare WORK` it makes weights, exports and rows. As `python contestants.py NAME WORK` it
builds one contestant, says `{"ready": ...}`, and answers one JSON command
per line on standard input until that closes. `WORK` holds what `prepare` made: timm's state dict, ONNX exports by batch
size, and the rows.

Peers get their input as they like it best, normalised float32 in their own layout, made outside of the clock; ours
normalises inside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TIMM_MODEL = "tf_efficientnet_cc_b0_8e"
ARCHITECTURE = "efficientnet-condconv-b0-8e"
BATCH_SIZES = (1, 4, 8)
MEAN = STD = (127.5, 127.5, 127.5)
CORES = len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Contestant:
    """`compute(input)` returns logits; `prepare(rows)` makes that input from uint8 `[B, 224, 224, 3]`.

    `callers` threads call it at once. `multiply_adds` are those of a row, where the contestant is ours.
    """

    compute: Callable[[Any], Any]
    prepare: Callable[[Any], Any]
    callers: int
    multiply_adds: int | None = None


def floats(rows: Any) -> Any:
    """Normalise rows, channels last."""
    return ((rows.astype(np.float32) - MEAN[0]) / STD[0]).astype(np.float32)


def channels_first(rows: Any) -> Any:
    return np.ascontiguousarray(floats(rows).transpose(0, 3, 1, 2))


# --- ours ------------------------------------------------------------------------------------------------------------


def network(work: Path, architecture: str = ARCHITECTURE) -> Any:
    """Our Keras network; with timm's weights, or random ones where it is the static twin."""
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    import keras
    from safetensors.numpy import load_file

    from condconv_serve.nn import build_network, get_architecture
    from condconv_serve.runtime.loading import set_weights
    from condconv_serve.store.importers.assembly import assemble
    from condconv_serve.store.importers.timm import translate_timm

    keras.utils.set_random_seed(0)
    model = build_network(get_architecture(architecture))
    if architecture == ARCHITECTURE:
        shapes = {variable.path: tuple(variable.shape) for variable in model.weights}
        translation = translate_timm(load_file(work / "weights.safetensors"), shapes)
        set_weights(model, assemble(translation, shapes, architecture=architecture), name=architecture)
    return model


def ours(
    work: Path,
    *,
    engine: str,
    precision: str,
    native: str = "off",
    isa: str | None = None,
    architecture: str = ARCHITECTURE,
) -> Contestant:
    """Our engine; with `isa` as on a CPU that has nothing better than that.

    Raises:
        RuntimeError: the engine or the native kernels can't compute the network here, or the CPU has nothing better.
    """
    if isa:
        limit_isa(isa)
    from condconv_serve.domain import Preprocessing
    from condconv_serve.nn import cost
    from condconv_serve.runtime.devices import detect_machine
    from condconv_serve.runtime.engines import build_engine
    from condconv_serve.runtime.plan import EngineOptions, make_plan
    from condconv_serve.runtime.tensorflow_engine import limit_threads

    machine = detect_machine(look_for_accelerators=False)
    plan = make_plan(machine, EngineOptions(device="cpu", engine=engine, precision=precision, native=native))
    limit_threads(plan.threads_per_stream)
    model = network(work, architecture)
    preprocessing = Preprocessing(transform="pillow", image_size=224, mean=MEAN, std=STD)
    built, described = build_engine(model, preprocessing, plan)
    if described.engine != engine or (described.native.state == "used") != (native == "on"):
        raise RuntimeError(str(described))
    multiply_adds = cost(model).multiply_adds
    return Contestant(lambda rows: built(rows)["logits"], lambda rows: rows, plan.streams, multiply_adds)


def native(work: Path, *, precision: str, isa: str | None = None, architecture: str = ARCHITECTURE) -> Contestant:
    """Ours with native kernels."""
    return ours(work, engine="tensorflow", precision=precision, native="on", isa=isa, architecture=architecture)


def limit_isa(isa: str) -> None:
    """Let this process use that instruction set at most; OpenVINO's kernels outside of oneDNN don't obey.

    Raises:
        RuntimeError: the CPU has nothing better, so this would be the same as without.
    """
    from condconv_serve.runtime.kernels import library

    if library.isas()[0] == isa:
        raise RuntimeError(f"this CPU has nothing better than {isa}")
    library.use_isa(isa)
    os.environ["ONEDNN_MAX_CPU_ISA"] = isa.upper()


def official(work: Path, *, streams: int) -> Contestant:
    """The formulation of the official layers: kernels mixed at once, then one convolution per example.

    Frozen like ours, so that the difference is the formulation alone; norms stay as they are in the layers.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(max(1, CORES // streams))
    model = network(work)
    import keras
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D, mix_experts

    size_of_batch = [0]

    def per_example(layer: Any, x: Any, routing: Any) -> Any:
        kernels = mix_experts(routing, layer.kernel)
        strides, padding = layer.strides, layer.padding.upper()
        examples = []
        for i in range(size_of_batch[0]):
            if isinstance(layer, DepthwiseCondConv2D):
                y = tf.nn.depthwise_conv2d(x[i : i + 1], kernels[i], (1, *strides, 1), padding)
            else:
                y = tf.nn.conv2d(x[i : i + 1], kernels[i], strides, padding)
            examples.append(y)
        return tf.concat(examples, axis=0)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, CondConv2D | DepthwiseCondConv2D):
            return layer(*args, **kwargs)
        x, routing = keras.tree.flatten((args, [kwargs[k] for k in ("inputs", "routing_weights") if k in kwargs]))[:2]
        return per_example(layer, x, routing)

    sessions = {}
    for size in BATCH_SIZES:
        size_of_batch[0] = size

        def infer(x: Any) -> Any:
            values = {id(tensor): x for tensor in model.inputs}
            for nodes in [model._nodes_by_depth[d] for d in sorted(model._nodes_by_depth, reverse=True)]:
                for node in nodes:
                    if node.is_input:
                        continue
                    args, kwargs = node.arguments.fill_in(values)
                    kwargs.pop("training", None)
                    outputs = call(node.operation, *args, **kwargs)
                    for tensor, value in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                        values[id(tensor)] = value
            return tf.identity(values[id(model.output["logits"])])

        concrete = tf.function(infer, autograph=False).get_concrete_function(
            tf.TensorSpec((size, 224, 224, 3), tf.float32, "x")
        )
        frozen = convert_variables_to_constants_v2(concrete)
        graph_def, output = frozen.graph.as_graph_def(), frozen.outputs[0].name
        graph = tf.Graph()
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
        config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=-1 if streams > 1 else CORES)
        sessions[size] = tf.compat.v1.Session(graph=graph, config=config).make_callable(output, feed_list=["x:0"])
    return Contestant(lambda x: sessions[len(x)](x), floats, streams)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def timm_model(work: Path) -> Any:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(TIMM_MODEL, pretrained=False)
    model.load_state_dict(load_file(work / "weights.safetensors"))
    return model.eval()


def torch_timm(work: Path, *, inductor: bool, bfloat16: bool, streams: int) -> Contestant:
    import torch

    torch.set_num_threads(max(1, CORES // streams))
    model = timm_model(work).to(memory_format=torch.channels_last)
    if inductor:
        torch._inductor.config.freezing = True
        model = torch.compile(model, dynamic=False)

    def compute(x: Any) -> Any:
        torch.set_num_threads(max(1, CORES // streams))
        with torch.inference_mode(not inductor), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, bfloat16):
            return model(x).float().numpy()

    def prepare(rows: Any) -> Any:
        return torch.from_numpy(channels_first(rows)).to(memory_format=torch.channels_last)

    return Contestant(compute, prepare, streams)


def onnxruntime(work: Path, *, streams: int) -> Contestant:
    import onnxruntime as ort

    sessions = {}
    for size in BATCH_SIZES:
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, CORES // streams)
        sessions[size] = ort.InferenceSession(work / f"b{size}.onnx", options, providers=["CPUExecutionProvider"])
    return Contestant(lambda x: sessions[len(x)].run(None, {"x": x})[0], channels_first, streams)


def openvino_timm(work: Path, *, hint: str, precision: str) -> Contestant:
    import threading

    import openvino

    core = openvino.Core()
    streams = 1 if hint == "LATENCY" else CORES
    config = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": CORES,
        **({"NUM_STREAMS": CORES} if hint == "THROUGHPUT" else {}),
    }
    compiled = {size: core.compile_model(work / f"b{size}.onnx", "CPU", config) for size in BATCH_SIZES}
    local = threading.local()

    def compute(x: Any) -> Any:
        requests = local.__dict__.setdefault("requests", {})
        if len(x) not in requests:
            requests[len(x)] = compiled[len(x)].create_infer_request()
        request = requests[len(x)]
        request.infer({0: x}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return Contestant(compute, channels_first, streams)


CONTESTANTS: dict[str, Callable[[Path], Contestant]] = {
    "ours native f32": lambda w: native(w, precision="float32"),
    "ours native bf16": lambda w: native(w, precision="bfloat16"),
    "ours native-avx2 f32": lambda w: native(w, precision="float32", isa="avx2"),
    "ours tensorflow f32": lambda w: ours(w, engine="tensorflow", precision="float32"),
    "ours tensorflow bf16": lambda w: ours(w, engine="tensorflow", precision="bfloat16"),
    "ours openvino f32": lambda w: ours(w, engine="openvino", precision="float32"),
    "ours openvino bf16": lambda w: ours(w, engine="openvino", precision="bfloat16"),
    "static native f32": lambda w: native(w, precision="float32", architecture=STATIC),
    "static native bf16": lambda w: native(w, precision="bfloat16", architecture=STATIC),
    "static native-avx2 f32": lambda w: native(w, precision="float32", isa="avx2", architecture=STATIC),
    "static tensorflow f32": lambda w: ours(w, engine="tensorflow", precision="float32", architecture=STATIC),
    "static tensorflow bf16": lambda w: ours(w, engine="tensorflow", precision="bfloat16", architecture=STATIC),
    "static openvino f32": lambda w: ours(w, engine="openvino", precision="float32", architecture=STATIC),
    "static openvino bf16": lambda w: ours(w, engine="openvino", precision="bfloat16", architecture=STATIC),
    "static openvino-avx2 f32": lambda w: ours(
        w, engine="openvino", precision="float32", isa="avx2", architecture=STATIC
    ),
    "official streams f32": lambda w: official(w, streams=CORES),
    "timm eager streams f32": lambda w: torch_timm(w, inductor=False, bfloat16=False, streams=CORES),
    "timm inductor 1 x all f32": lambda w: torch_timm(w, inductor=True, bfloat16=False, streams=1),
    "onnxruntime 1 x all f32": lambda w: onnxruntime(w, streams=1),
    "onnxruntime streams f32": lambda w: onnxruntime(w, streams=CORES),
    "openvino-timm latency f32": lambda w: openvino_timm(w, hint="LATENCY", precision="f32"),
    "openvino-timm throughput f32": lambda w: openvino_timm(w, hint="THROUGHPUT", precision="f32"),
    "openvino-timm latency bf16": lambda w: openvino_timm(w, hint="LATENCY", precision="bf16"),
    "openvino-timm throughput bf16": lambda w: openvino_timm(w, hint="THROUGHPUT", precision="bf16"),
}
"""By name; "1 x all" computes one batch at a time on all cores, "streams" one batch per core."""
STATIC = "efficientnet-b0"


def prepare(work: Path) -> None:
    """Make seeded weights with timm, export them, and make rows. Running statistics and routing are far from neutral.

    Raises:
        ModuleNotFoundError: PyTorch or timm is not installed.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = timm.create_model(TIMM_MODEL, pretrained=False)
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (8, 8, 8, 3))
    rows = np.repeat(np.repeat(coarse, 28, 1), 28, 2) + rng.normal(0, 10, (8, 224, 224, 3))
    rows = rows.clip(0, 255).astype(np.uint8)
    np.save(work / "rows.npy", rows)
    x = torch.from_numpy(channels_first(rows))
    with torch.inference_mode():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over all passes
        for name, parameter in model.named_parameters():
            if "routing_fn" in name:
                parameter.normal_(0, 0.05)
            elif re.search(r"bn[12]\.bias$", name):
                parameter.fill_(0.5)
        # Running statistics that fit the activations, and routing that isn't saturated: with plain random weights
        # rounding errors would grow from block to block, which with trained ones they don't.
        for _ in range(2):
            model.train()(x)
        np.save(work / "logits.npy", model.eval()(x).numpy())
    save_file(model.state_dict(), work / "weights.safetensors")
    for size in BATCH_SIZES:
        torch.onnx.export(
            model,
            (x[:size],),
            work / f"b{size}.onnx",
            input_names=["x"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main() -> None:
    name, work = sys.argv[1], Path(sys.argv[2])
    if name == "prepare":
        prepare(work)
        return
    # Frameworks print what they like; the protocol keeps standard output to itself.
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from condconv_serve.machine.memory import release_memory
    from condconv_serve.offline.throughput import measure

    started = time.perf_counter()
    contestant = CONTESTANTS[name](work)
    rows = np.load(work / "rows.npy")
    inputs = {size: contestant.prepare(rows[:size]) for size in BATCH_SIZES}
    expected = np.load(work / "logits.npy")
    difference = 0.0
    for size, x in inputs.items():
        for caller in range(contestant.callers):
            measure(lambda _, x=x: contestant.compute(x), callers=caller + 1, rows_per_call=size, seconds=0.2)
        found = np.asarray(contestant.compute(x), np.float32)
        difference = max(difference, float(np.abs(found - expected[:size]).max() / np.abs(expected).max()))
    release_memory()
    ready = {
        "ready": time.perf_counter() - started,
        "difference": difference,
        "multiply_adds": contestant.multiply_adds,
    }
    protocol.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        x = inputs[command["batch_size"]]
        found = measure(
            lambda _, x=x: contestant.compute(x),
            callers=1 if command["lone"] else contestant.callers,
            rows_per_call=len(x),
            seconds=command["seconds"],
        )
        protocol.write(json.dumps(dataclasses.asdict(found)) + "\n")


if __name__ == "__main__":
    main()
