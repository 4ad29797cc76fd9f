"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, with Triton's extensions."""

from __future__ import annotations

from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict

from condconv_serve.domain import ServedModel
from condconv_serve.errors import InvalidParameter, NotSupported, ServiceError
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc.metadata import SPLIT_KEY
from condconv_serve.fronts.grpc.service import Call, Method, Service, StreamMethod
from condconv_serve.fronts.oip.grpc_messages import (
    MESSAGES,
    REQUEST,
    STREAM_RESPONSE,
    infer_response,
    read_infer_request,
    values_of,
)
from condconv_serve.fronts.oip.metadata import model_config, model_metadata, server_metadata
from condconv_serve.fronts.oip.names import check_lengths
from condconv_serve.fronts.oip.outputs import output_tensors
from condconv_serve.fronts.oip.parameters import NO_SHARED_MEMORY
from condconv_serve.fronts.oip.repository import Repository
from condconv_serve.fronts.oip.statistics import model_statistics
from condconv_serve.fronts.tensor_inference import TensorInference

NAME = "inference.GRPCInferenceService"
GRPC_ERRORS = "triton_grpc_error"
"""Metadata of a stream: with the value `true` its first error ends it with the error's status, as Triton has it."""

_FINAL = "triton_final_response"
_ELEMENTS_AT_ONCE = 128 * 1024
"""More elements in `contents` are read or written on another thread, so that others get their turn in between."""


def service(context: AppContext) -> Service:
    """Make the service."""
    inference = _Inference(context)
    return Service(
        name=NAME,
        front="oip-grpc",
        methods={**inference.methods(), **_describing(context), **_repository(context), **_refused()},
        files=MESSAGES.files,
    )


class _Inference:
    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._inference = TensorInference(context.images, context.gatekeeper, max_images=context.limits.max_images)

    def methods(self) -> dict[str, Method | StreamMethod]:
        return {
            "ModelInfer": Method(request=REQUEST, answer=self._infer, before_body=self._before_body),
            "ModelStreamInfer": StreamMethod(request=REQUEST, answer=self._stream_infer, failed=_failed),
        }

    async def _before_body(self, call: Call) -> None:
        await self._inference.check_unnamed(call.facts)

    async def _infer(self, request: Any, call: Call) -> Any:
        return await self._answer(request, call)

    async def _stream_infer(self, request: Any, call: Call) -> Any:
        # Triton marks the last answer to a request. Here each has one.
        return STREAM_RESPONSE(infer_response=await self._answer(request, call, **{_FINAL: True}))

    async def _answer(self, request: Any, call: Call, **parameters: bool) -> Any:
        context, facts = self._context, call.facts
        name, version = _named(request.model_name, request.model_version)
        split_key = context.gatekeeper.split_key(facts, call.metadata.get(SPLIT_KEY))
        await self._inference.check(facts, model=name, version=version, split_key=split_key)
        model = context.models.get(name, version, key=split_key).info
        read = partial(read_infer_request, request, model=model, max_rows=context.limits.max_images)
        asked = await context.long_reads.run(read) if _holds_many(request) else read()
        answer = await self._inference.infer(
            facts,
            asked.of_model(name, version, split_key=split_key),
            deadline=call.deadline(asked.parameters.deadline(context.gatekeeper)),
        )
        tensors = output_tensors(asked.outputs, answer.tensors, answer.model)
        write = partial(
            infer_response,
            tensors,
            model=answer.model,
            request_id=request.id,
            raw=asked.raw_output,
            parameters=parameters,
        )
        is_long = not asked.raw_output and sum(tensor.values.size for tensor in tensors) > _ELEMENTS_AT_ONCE
        return await context.long_reads.run(write) if is_long else write()


def _failed(error: ServiceError, request: Any, call: Call) -> Any | None:
    if call.metadata.get(GRPC_ERRORS, "").lower() == "true":
        return None
    response = STREAM_RESPONSE(error_message=str(error))
    if request is not None:  # so that the client knows which request it was
        response.infer_response.id = request.id
    return response


def _describing(context: AppContext) -> dict[str, Method]:
    models, message = context.models, MESSAGES.message

    def served(request: Any, call: Call) -> ServedModel:
        name, version = _named(request.name, request.version)
        return models.get(name, version, key=context.gatekeeper.split_key(call.facts, call.metadata.get(SPLIT_KEY)))

    async def live(request: Any, call: Call) -> Any:
        return message("inference.ServerLiveResponse")(live=True)

    async def ready(request: Any, call: Call) -> Any:
        return message("inference.ServerReadyResponse")(ready=context.readiness.unready() is None)

    async def model_ready(request: Any, call: Call) -> Any:
        found = context.readiness.unready() is None
        try:
            served(request, call)
        except InvalidParameter:
            raise
        except ServiceError:
            found = False
        return message("inference.ModelReadyResponse")(ready=found)

    async def server(request: Any, call: Call) -> Any:
        return message("inference.ServerMetadataResponse")(**server_metadata())

    async def model(request: Any, call: Call) -> Any:
        found = model_metadata(served(request, call), models)
        parameters = found.pop("parameters")
        response = message("inference.ModelMetadataResponse")(**found)
        for name, value in parameters.items():
            response.parameters[name].string_param = value
        return response

    async def config(request: Any, call: Call) -> Any:
        found = model_config(served(request, call))
        return ParseDict({"config": found}, message("inference.ModelConfigResponse")())

    async def statistics(request: Any, call: Call) -> Any:
        name, version = _named(request.name, request.version)
        found = await model_statistics(context.tallies, models, name=name, version=version)
        return ParseDict(found, message("inference.ModelStatisticsResponse")())

    def method(name: str, answer: Any, **options: Any) -> Method:
        return Method(request=message(f"inference.{name}Request"), answer=answer, **options)

    return {
        "ServerLive": method("ServerLive", live, access="open", quiet=True),
        "ServerReady": method("ServerReady", ready, access="open", quiet=True),
        "ModelReady": method("ModelReady", model_ready),
        "ServerMetadata": method("ServerMetadata", server),
        "ModelMetadata": method("ModelMetadata", model),
        "ModelConfig": method("ModelConfig", config),
        "ModelStatistics": method("ModelStatistics", statistics),
    }


def _repository(context: AppContext) -> dict[str, Method]:
    repository, message = Repository(context.versions, context.models), MESSAGES.message

    async def index(request: Any, call: Call) -> Any:
        response = message("inference.RepositoryIndexResponse")()
        for entry in await repository.index(ready=request.ready):
            response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def load(request: Any, call: Call) -> Any:
        name = _repository_model(request)
        await repository.load(name, values_of(request.parameters))
        return message("inference.RepositoryModelLoadResponse")(model_name=name, isLoaded=True)

    async def unload(request: Any, call: Call) -> Any:
        name = _repository_model(request)
        await repository.unload(name, values_of(request.parameters))
        return message("inference.RepositoryModelUnloadResponse")(model_name=name, isUnloaded=True)

    return {
        "RepositoryIndex": Method(request=message("inference.RepositoryIndexRequest"), answer=index),
        "RepositoryModelLoad": Method(
            request=message("inference.RepositoryModelLoadRequest"), answer=load, access="admin"
        ),
        "RepositoryModelUnload": Method(
            request=message("inference.RepositoryModelUnloadRequest"), answer=unload, access="admin"
        ),
    }


def _refused() -> dict[str, Method]:
    """Triton's methods that this service doesn't have. The status of shared memory is that there is none."""

    def refusing(name: str, why: str) -> Method:
        async def refuse(request: Any, call: Call) -> Any:
            raise NotSupported(why)

        return Method(request=MESSAGES.message(f"inference.{name}Request"), answer=refuse)

    def none_of(name: str) -> Method:
        async def status(request: Any, call: Call) -> Any:
            return MESSAGES.message(f"inference.{name}Response")()

        return Method(request=MESSAGES.message(f"inference.{name}Request"), answer=status)

    kinds = ("SystemSharedMemory", "CudaSharedMemory")
    verbs = ("Register", "Unregister")
    return {
        **{f"{kind}Status": none_of(f"{kind}Status") for kind in kinds},
        **{f"{kind}{verb}": refusing(f"{kind}{verb}", NO_SHARED_MEMORY) for kind in kinds for verb in verbs},
        "TraceSetting": refusing("TraceSetting", "Traces are set with CONDCONV_OTLP_ENDPOINT when the server starts."),
        "LogSettings": refusing("LogSettings", "Logs are set with CONDCONV_LOG_LEVEL when the server starts."),
    }


def _repository_model(request: Any) -> str:
    # KServe has the model's name where Triton has the repository's, of which there is one here.
    name: str = request.model_name or request.repository_name
    if not name:
        raise InvalidParameter("model_name is missing.")
    return name


def _named(name: str, version: str) -> tuple[str | None, str | None]:
    """Name and version, or alias; None where there is none."""
    check_lengths(name, version)
    return name or None, version or None


def _holds_many(request: Any) -> bool:
    contents = (only.contents for only in request.inputs)
    return any(len(each.uint_contents) + len(each.fp32_contents) > _ELEMENTS_AT_ONCE for each in contents)
