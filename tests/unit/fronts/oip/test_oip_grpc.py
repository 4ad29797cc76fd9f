"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from condconv_serve import __version__
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc import NAME, service
from condconv_serve.fronts.oip.grpc_messages import MESSAGES, REQUEST, STREAM_RESPONSE
from tests.contract.fronts import House, house_with_keys
from tests.contract.grpc_calls import Served, grpc_served, slug_of
from tests.contract.open_inference_grpc import classes_of, infer_request

METHODS = MESSAGES.methods(NAME)


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    async with house_with_keys(keys=None) as (house, context), grpc_served([service(context)], context) as served:
        yield Asked(house, context, served)


class Asked:
    """Calls a method with a message and returns the answer's message."""

    def __init__(self, house: House, context: AppContext, served: Served) -> None:
        self.house, self.context, self.served = house, context, served

    async def __call__(self, method: str, request: Any = None, **fields: Any) -> Any:
        kinds = [MESSAGES.message(getattr(METHODS[method], f"{way}_type").full_name) for way in ("input", "output")]
        called = self.served.channel.unary_unary(
            f"/{NAME}/{method}",
            request_serializer=kinds[0].SerializeToString,
            response_deserializer=kinds[1].FromString,
        )
        return await called(request if request is not None else kinds[0](**fields))

    async def refused(self, method: str, request: Any = None, **fields: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self(method, request, **fields)
        return caught.value


def pixels(*shades: int, datatype: str = "UINT8") -> np.ndarray:
    kind = {"UINT8": np.uint8, "FP32": np.float32}[datatype]
    return np.broadcast_to(np.array(shades, kind)[:, None, None, None], (len(shades), 32, 32, 3))


def of_pixels(*shades: int, datatype: str = "UINT8", raw: bool = True) -> Any:
    request, values = REQUEST(model_name="fake"), pixels(*shades, datatype=datatype)
    only = request.inputs.add(name="pixels", datatype=datatype, shape=values.shape)
    if raw:
        request.raw_input_contents.append(values.tobytes())
    else:
        getattr(only.contents, {"UINT8": "uint_contents", "FP32": "fp32_contents"}[datatype]).extend(
            values.ravel().tolist()
        )
    return request


def test_every_method_of_the_protocol_is_answered_with_its_messages(asked):
    found = service(asked.context).methods
    assert found.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert found[name].request.DESCRIPTOR.full_name == method.input_type.full_name, name


async def test_the_server(asked):
    assert (await asked("ServerLive")).live
    assert (await asked("ServerReady")).ready
    metadata = await asked("ServerMetadata")
    assert (metadata.name, metadata.version) == ("condconv-serve", __version__)
    assert "statistics" in metadata.extensions
    asked.house.readiness.drain()
    assert (await asked("ServerLive")).live
    assert not (await asked("ServerReady")).ready
    assert not (await asked("ModelReady", name="fake")).ready


async def test_the_model(asked):
    assert (await asked("ModelReady", name="fake", version="1")).ready
    assert not (await asked("ModelReady", name="other")).ready
    metadata = await asked("ModelMetadata", name="fake")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("fake", ["1"], "condconv_bundle")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, 32, 32, 3]),
    ]
    assert ("routing", "FP32", [-1, 2, 3]) in [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs]
    assert metadata.parameters["routing_blocks"].string_param == '["block_1", "block_2"]'
    config = (await asked("ModelConfig", name="fake")).config
    assert (config.name, config.max_batch_size) == ("fake", 0)
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("image", 13, [-1]),
        ("pixels", 2, [-1, 32, 32, 3]),
    ]
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        error = await asked.refused(method, name="other")
        assert (error.code(), slug_of(error)) == (grpc.StatusCode.NOT_FOUND, "model_not_found"), method


async def test_statistics(asked):
    await asked("ModelInfer", infer_request([1, 2]))
    (found,) = (await asked("ModelStatistics")).model_stats
    assert (found.name, found.version, found.inference_count) == ("fake", "1", 2)
    assert found.inference_stats.success.count == 1
    assert found.inference_stats.compute_infer.ns > 0


async def test_encoded_images(asked):
    request = infer_request([1, 8, 3])
    request.id = "mine"
    response = await asked("ModelInfer", request)
    assert (response.model_name, response.model_version, response.id) == ("fake", "1", "mine")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("logits", "FP32", [3, 6])
    assert classes_of(response) == [1, 2, 3]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
async def test_pixels(asked, datatype, raw):
    request = of_pixels(3, 200, 1, datatype=datatype, raw=raw)
    request.outputs.add(name="logits")
    assert classes_of(await asked("ModelInfer", request)) == [3, 200 % 6, 1]


async def test_images_in_contents(asked):
    request = infer_request([4, 5])
    data = request.raw_input_contents.pop()
    length = int.from_bytes(data[:4], "little")
    request.inputs[0].contents.bytes_contents.extend([data[4 : 4 + length], data[8 + length :]])
    assert classes_of(await asked("ModelInfer", request)) == [4, 5]


async def test_all_outputs_raw_or_in_contents(asked):
    request = of_pixels(4)
    raw = await asked("ModelInfer", request)
    request.parameters["binary_data_output"].bool_param = False
    typed = await asked("ModelInfer", request)
    names = [output.name for output in raw.outputs]
    assert {"logits", "probabilities", "routing", "label"} <= set(names)
    assert len(raw.raw_output_contents) == len(names)
    assert not typed.raw_output_contents
    for output, data, other in zip(raw.outputs, raw.raw_output_contents, typed.outputs, strict=True):
        assert (output.name, output.datatype, output.shape) == (other.name, other.datatype, other.shape)
        if output.datatype == "FP32":
            assert np.frombuffer(data, np.float32).tolist() == list(other.contents.fp32_contents)
        else:
            assert data == joined(other.contents.bytes_contents)
    assert list(typed.outputs[names.index("label")].contents.bytes_contents) == [b"class 4"]


async def test_classes_as_text(asked):
    request = of_pixels(4)
    request.outputs.add(name="logits").parameters["classification"].int64_param = 2
    response = await asked("ModelInfer", request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [1, 2])
    assert response.raw_output_contents[0] == joined([b"5.000000:4:class 4", b"0.000000:0:class 0"])


def changed(change: Any) -> Any:
    request = of_pixels(1)
    change(request)
    return request


WRONG = {
    "no inputs": (lambda r: r.ClearField("inputs"), "image or pixels"),
    "two inputs": (lambda r: r.inputs.add(name="image"), "exactly one"),
    "another name": (lambda r: setattr(r.inputs[0], "name", "x"), "image or pixels"),
    "another type": (lambda r: setattr(r.inputs[0], "datatype", "INT8"), "UINT8 or FP32, not 'INT8'"),
    "another shape": (lambda r: r.inputs[0].shape.append(1), r"\[N, 32, 32, 3\]"),
    "no rows": (lambda r: r.inputs[0].shape.__setitem__(0, 0), "at least one"),
    "too many rows": (lambda r: r.inputs[0].shape.__setitem__(0, 21), "20 are allowed"),
    "a huge shape": (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "20 are allowed"),
    "a negative shape": (lambda r: r.inputs[0].shape.__setitem__(0, -1), "whole numbers"),
    "too few bytes": (lambda r: r.raw_input_contents.__setitem__(0, b"123"), "has 3 bytes"),
    "no bytes": (lambda r: r.ClearField("raw_input_contents"), "has 0 elements"),
    "too many raw contents": (lambda r: r.raw_input_contents.append(b""), "must have one"),
    "both contents": (lambda r: r.inputs[0].contents.uint_contents.append(1), "one of them"),
    "another field": (
        lambda r: (r.ClearField("raw_input_contents"), r.inputs[0].contents.int_contents.append(1)),
        "uint_contents or in raw_input_contents, not in int_contents",
    ),
    "an unknown output": (lambda r: r.outputs.add(name="x"), "it has logits"),
    "an output twice": (lambda r: (r.outputs.add(name="logits"), r.outputs.add(name="logits")), "more than once"),
    "a priority": (lambda r: setattr(r.parameters["priority"], "uint64_param", 9), "priority may be"),
    "a timeout": (lambda r: setattr(r.parameters["timeout"], "string_param", "1"), "timeout"),
    "too long a timeout": (lambda r: setattr(r.parameters["timeout"], "int64_param", 10**8), "at most 60000000"),
    "a long name": (lambda r: setattr(r, "model_name", "x" * 300), "at most 256"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_requests(asked, name):
    change, says = WRONG[name]
    error = await asked.refused("ModelInfer", changed(change))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError, match=says):
        raise error


async def test_one_bad_image_among_several_is_named(asked):
    request = REQUEST(raw_input_contents=[joined([infer_request([1]).raw_input_contents[0][4:], b"no image"])])
    request.inputs.add(name="image", datatype="BYTES", shape=[2])
    error = await asked.refused("ModelInfer", request)
    assert (slug_of(error), error.details().partition(": ")[0]) == ("unsupported_image", "Image 1 of 2")


async def test_a_stream(asked):
    stream = asked.served.channel.stream_stream(
        f"/{NAME}/ModelStreamInfer",
        request_serializer=REQUEST.SerializeToString,
        response_deserializer=STREAM_RESPONSE.FromString,
    )()
    for number, request in enumerate((infer_request([1]), changed(WRONG["no bytes"][0]), infer_request([2]))):
        request.id = str(number)
        await stream.write(request)
    await stream.done_writing()
    first, failed, last = [response async for response in stream]
    assert classes_of(first.infer_response) == [1]
    assert classes_of(last.infer_response) == [2]
    assert first.infer_response.parameters["triton_final_response"].bool_param
    assert (failed.infer_response.id, failed.error_message) == (
        "1",
        "Input pixels has 0 elements; [1, 32, 32, 3] has 3072.",
    )


async def test_a_stream_that_ends_with_its_first_error(asked):
    stream = asked.served.channel.stream_stream(f"/{NAME}/ModelStreamInfer")(metadata=[("triton_grpc_error", "true")])
    await stream.write(changed(WRONG["no bytes"][0]).SerializeToString())
    with pytest.raises(grpc.aio.AioRpcError, match="0 elements") as caught:
        await stream.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_repository(asked):
    assert list((await asked("RepositoryIndex")).models) == []
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        for field in ("model_name", "repository_name"):  # KServe's number
            error = await asked.refused(method, **{field: "pear"})
            assert (error.code(), "'pear'" in error.details()) == (grpc.StatusCode.NOT_FOUND, True)
        assert (await asked.refused(method)).code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_only_admins_change_the_repository():
    async with house_with_keys() as (_, context), grpc_served([service(context)], context) as served:
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.channel.unary_unary(f"/{NAME}/{method}")(b"", metadata=[("x-api-key", "ann")])
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        for method in ("ServerLive", "ServerReady"):
            await served.channel.unary_unary(f"/{NAME}/{method}")(b"")
        for method in METHODS.keys() - {"ServerLive", "ServerReady", "ModelStreamInfer"}:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.channel.unary_unary(f"/{NAME}/{method}")(b"")
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, method


async def test_what_there_is_not(asked):
    for kind in ("SystemSharedMemory", "CudaSharedMemory"):
        assert not (await asked(f"{kind}Status")).regions
        for verb in ("Register", "Unregister"):
            error = await asked.refused(f"{kind}{verb}")
            assert (error.code(), slug_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "not_supported")
    request = of_pixels(1)
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    error = await asked.refused("ModelInfer", request)
    assert (error.code(), slug_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "not_supported")
    for method in ("TraceSetting", "LogSettings"):
        assert (await asked.refused(method)).code() == grpc.StatusCode.UNIMPLEMENTED
