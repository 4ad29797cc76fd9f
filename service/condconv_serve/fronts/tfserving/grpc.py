"""TensorFlow Serving's gRPC services: `PredictionService`, and what there is of `ModelService`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from google.protobuf import json_format

from condconv_serve.domain import PROBABILITIES, ImageSource, ModelInfo, PixelSource
from condconv_serve.errors import InvalidParameter, MissingImage, NotSupported, TooManyImages
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc.messages import MessageSet
from condconv_serve.fronts.grpc.metadata import SPLIT_KEY
from condconv_serve.fronts.grpc.service import Call, Method, Service
from condconv_serve.fronts.tensor_inference import IMAGE
from condconv_serve.fronts.tfserving.inputs import image_of_example
from condconv_serve.fronts.tfserving.metadata import signature_defs
from condconv_serve.fronts.tfserving.model_spec import ModelSpec, spec_of
from condconv_serve.fronts.tfserving.model_status import status_entry, wanted_statuses
from condconv_serve.fronts.tfserving.outputs import best_classes, elements_of
from condconv_serve.fronts.tfserving.question import Options, Question, Questions
from condconv_serve.fronts.tfserving.signatures import (
    INPUT_NAMES,
    Signature,
    check_classify_signature,
    predict_signature,
    regress_refusal,
)
from condconv_serve.fronts.tfserving.tensors import fill_tensor, images_of, pixels_of
from condconv_serve.fronts.thresholds import THRESHOLDS, thresholds_of
from condconv_serve.tasks.named_outputs import outputs_of

MESSAGES = MessageSet("tensorflow_serving")
PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
FRONT = "tfserving-grpc"
PRIORITY = "x-priority"
"""Name of the metadata that says how urgent a request is: high, normal or low."""
THRESHOLD_KEYS = {f"x-{name.replace('_', '-')}": name for name in THRESHOLDS}
"""Names of the metadata that say what counts as an object, with those of the thresholds."""
SIGNATURE_DEF = "signature_def"
"""The only field of metadata."""
INLINE_BYTES = 256 * 1024
"""Requests up to this size are read on the event loop, which takes less than a millisecond."""

INLINE_ELEMENTS = 128 * 1024
"""Answers with up to so many elements are written on the event loop."""

Sources = Sequence[ImageSource | PixelSource]


def _message(name: str) -> Any:
    return MESSAGES.message(f"tensorflow.serving.{name}")


def prediction_service(context: AppContext) -> Service:
    """The service that computes, and describes models."""
    answers = _Predictions(context)

    async def before_body(call: Call) -> None:
        await answers.questions.check_unnamed(call.facts)

    computing = {
        "Predict": (answers.predict, "PredictRequest"),
        "Classify": (answers.classify, "ClassificationRequest"),
        "Regress": (answers.regress, "RegressionRequest"),
        "MultiInference": (answers.multi_inference, "MultiInferenceRequest"),
    }
    return Service(
        name=PREDICTION_SERVICE,
        front=FRONT,
        methods={
            **{
                name: Method(request=_message(request), answer=answer, before_body=before_body)
                for name, (answer, request) in computing.items()
            },
            "GetModelMetadata": Method(request=_message("GetModelMetadataRequest"), answer=answers.metadata),
        },
        files=MESSAGES.files,
    )


def model_service(context: AppContext) -> Service:
    """The service that tells the state of versions."""

    async def status(request: Any, call: Call) -> Any:
        spec, _ = _spec(context, request)
        statuses = await asyncio.to_thread(context.versions.status)
        found = wanted_statuses(statuses, context.models.aliases(spec.name), spec)
        body = {"model_version_status": [status_entry(each) for each in found]}
        return json_format.ParseDict(body, _message("GetModelStatusResponse")())

    async def reload(request: Any, call: Call) -> NoReturn:
        raise NotSupported("Models aren't configured by HandleReloadConfigRequest; the server follows its model store.")

    return Service(
        name=MODEL_SERVICE,
        front=FRONT,
        methods={
            "GetModelStatus": Method(request=_message("GetModelStatusRequest"), answer=status),
            "HandleReloadConfigRequest": Method(request=_message("ReloadConfigRequest"), answer=reload, access="admin"),
        },
        files=MESSAGES.files,
    )


class _Predictions:
    """Answers the methods of `PredictionService`."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self.questions = Questions(context)

    async def predict(self, request: Any, call: Call) -> Any:
        spec, signature_name = _spec(self._context, request)
        question = await self._ask(spec, call)
        signature = predict_signature(question.model, signature_name, inputs=frozenset(request.inputs))
        outputs = _outputs(request, signature, question.model)
        sources = await self._read(request, lambda: _sources(request, signature, self._context.limits.max_images))
        answer = await self._infer(question, sources, outputs, call)
        response = _message("PredictResponse")()
        _tell_model(response.model_spec, answer.model, signature.name)

        def fill() -> None:
            for name, values in answer.tensors.items():
                fill_tensor(response.outputs[name], values)

        if elements_of(answer.tensors) > INLINE_ELEMENTS:
            await self._context.long_reads.run(fill)
        else:
            fill()
        return response

    async def classify(self, request: Any, call: Call) -> Any:
        spec, signature_name = _spec(self._context, request)
        question = await self._ask(spec, call)
        check_classify_signature(question.model, signature_name)
        sources = await self._read(request, lambda: _examples(request.input, self._context.limits.max_images))
        answer = await self._infer(question, sources, (PROBABILITIES,), call)
        response = _message("ClassificationResponse")()
        _tell_model(response.model_spec, answer.model, signature_name or "serving_default")
        for row in best_classes(answer):
            classes = response.result.classifications.add().classes
            for label, score in row:
                classes.add(label=label, score=score)
        return response

    async def regress(self, request: Any, call: Call) -> NoReturn:
        spec, signature_name = _spec(self._context, request)
        raise regress_refusal((await self._ask(spec, call)).model, signature_name)

    async def multi_inference(self, request: Any, call: Call) -> NoReturn:
        raise NotSupported("MultiInference isn't offered; send Predict or Classify.")

    async def metadata(self, request: Any, call: Call) -> Any:
        spec, _ = _spec(self._context, request)
        fields = list(request.metadata_field)
        if not fields:
            raise InvalidParameter("GetModelMetadataRequest must specify at least one metadata_field.")
        if unknown := [name for name in fields if name != SIGNATURE_DEF]:
            raise InvalidParameter(f"Metadata field {unknown[0][:100]} is not supported; {SIGNATURE_DEF} is.")
        key = self._context.gatekeeper.split_key(call.facts, call.metadata.get(SPLIT_KEY))
        with spec.told_when_missing():
            model = self._context.models.get(spec.name, spec.version, key=key).info
        response = _message("GetModelMetadataResponse")()
        _tell_model(response.model_spec, model, "")
        found = json_format.ParseDict({"signature_def": signature_defs(model)}, _message("SignatureDefMap")())
        packed = response.metadata[SIGNATURE_DEF]
        packed.type_url = f"type.googleapis.com/{found.DESCRIPTOR.full_name}"
        packed.value = found.SerializeToString(deterministic=True)
        return response

    async def _ask(self, spec: ModelSpec, call: Call) -> Question:
        return await self.questions.ask(call.facts, spec, split_key=call.metadata.get(SPLIT_KEY))

    async def _read(self, request: Any, read: Any) -> Sources:
        """Read a request in a thread if that may take long."""
        found: Sources = read() if request.ByteSize() <= INLINE_BYTES else await self._context.long_reads.run(read)
        return found

    async def _infer(self, question: Question, sources: Sources, outputs: tuple[str, ...], call: Call) -> Any:
        deadline = call.deadline(self._context.gatekeeper.deadline())
        given = {name: call.metadata[key] for key, name in THRESHOLD_KEYS.items() if key in call.metadata}
        options = Options(priority=call.metadata.get(PRIORITY, "normal"), detect=thresholds_of(given))
        return await question.infer(sources, outputs, options=options, deadline=deadline)


def _spec(context: AppContext, request: Any) -> tuple[ModelSpec, str]:
    """Which model a request asks for, and the name of a signature.

    Raises:
        InvalidParameter: it names no model, or a label that doesn't exist.
    """
    if not request.HasField("model_spec"):
        raise InvalidParameter("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise InvalidParameter("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    return (
        spec_of(
            context.models,
            spec.name,
            version=str(spec.version.value) if choice == "version" else None,
            label=spec.version_label if choice == "version_label" else None,
        ),
        spec.signature_name,
    )


def _tell_model(spec: Any, model: ModelInfo, signature_name: str) -> None:
    spec.name, spec.signature_name = model.name, signature_name
    spec.version.value = int(model.version)


def _outputs(request: Any, signature: Signature, model: ModelInfo) -> tuple[str, ...]:
    """The outputs that a request asks for: those of its filter, or else of its signature."""
    asked = tuple(request.output_filter)
    if not asked:
        return tuple(output.name for output in signature.outputs)
    known = [output.name for output in outputs_of(model)]
    for place, name in enumerate(asked):
        if name not in known:
            raise InvalidParameter(
                f"output tensor alias not found in signature: {name[:100]} Outputs expected to be in the set "
                f"{{{','.join(known)}}}."
            )
        if name in asked[:place]:
            raise InvalidParameter(f"duplicate output tensor alias: {name}")
    return asked


def _sources(request: Any, signature: Signature, max_images: int) -> Sources:
    given, ours = sorted(request.inputs), signature.input.name
    if len(given) != 1 or INPUT_NAMES.get(given[0], given[0]) != ours:
        shown = ",".join(name[:100] for name in given[:3])
        raise InvalidParameter(
            f"input size does not match signature: {len(given)}!=1 len({{{shown}}}) != len({{{ours}}}). Send exactly "
            f"the input {ours} to signature {signature.name}."
        )
    tensor = request.inputs[given[0]]
    if ours == IMAGE:
        return [ImageSource(image) for image in images_of(tensor, ours, max_images=max_images)]
    return [PixelSource(row) for row in pixels_of(tensor, ours, signature.input.shape, max_images=max_images)]


def _examples(given: Any, max_images: int) -> Sources:
    kind = given.WhichOneof("kind")
    examples = getattr(given, kind).examples if kind else ()
    context = _features(given.example_list_with_context.context) if kind == "example_list_with_context" else {}
    if not examples:
        raise MissingImage("Input is empty.")
    if len(examples) > max_images:
        raise TooManyImages(f"The request has {len(examples)} rows; {max_images} are allowed.")
    return [
        ImageSource(image_of_example({**context, **_features(example)}, place))
        for place, example in enumerate(examples)
    ]


def _features(example: Any) -> Mapping[str, list[bytes]]:
    return {name: list(feature.bytes_list.value) for name, feature in example.features.feature.items()}
