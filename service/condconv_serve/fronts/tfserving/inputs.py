"""From the JSON of a request to its images or rows of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ImageSource, ModelInfo, PixelSource
from condconv_serve.errors import InvalidParameter, MalformedBody, MissingImage, ServiceError, TooManyImages
from condconv_serve.fronts.base64_text import decode_base64
from condconv_serve.fronts.json_documents import Document, Numbers
from condconv_serve.fronts.tensor_inference import IMAGE, PIXELS
from condconv_serve.fronts.tfserving.signatures import INPUT_NAMES, Signature, predict_signature

IMAGE_FEATURES = ("image/encoded", IMAGE)
"""Features of an example that may hold its encoded image."""
SHOWN_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictBody:
    """What a request to predict holds.

    Attributes:
        signature: how it is to be answered.
        sources: its images, or its rows of pixels.
        by_row: whether it has the row format, `instances`; else the column format, `inputs`.
    """

    signature: Signature
    sources: Sequence[ImageSource | PixelSource]
    by_row: bool


def signature_name(document: Document) -> str | None:
    """The name in `signature_name`; None if there is none.

    Raises:
        InvalidParameter: it is no text.
    """
    name = document.get("signature_name")
    if name is not None and not isinstance(name, str):
        raise InvalidParameter("'signature_name' key must be a string value.")
    return name or None


def read_predict(document: Document, model: ModelInfo, *, max_images: int) -> PredictBody:
    """Read the body of a request to predict.

    Args:
        document: the body.
        model: that is asked.
        max_images: most images of a request.

    Raises:
        InvalidParameter: a field is missing, or isn't what the signature takes.
        MalformedBody: an image is no base64, or numbers are no JSON.
        MissingImage, TooManyImages: there are no images, or more than allowed.
    """
    if "instances" in document and "inputs" in document:
        raise InvalidParameter("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist.")
    if "instances" in document:
        return _read_instances(document, model, max_images)
    if "inputs" in document:
        return _read_inputs(document, model, max_images)
    raise InvalidParameter("Missing 'inputs' or 'instances' key.")


def read_examples(document: Document, *, max_images: int) -> list[ImageSource]:
    """Read the images of a request to classify: one in each of its `examples`, or one in the `context` of all.

    Raises:
        InvalidParameter: a field is missing or isn't what it should be.
        MalformedBody: an image is no base64.
        MissingImage, TooManyImages: an example has no image, or there are more than allowed.
    """
    if "examples" not in document:
        raise InvalidParameter("When method is classify, key 'examples' is expected and was not found.")
    examples, context = document["examples"], document.get("context", {})
    if isinstance(examples, Numbers):
        raise InvalidParameter("Example must be JSON object but got numbers.")
    if not isinstance(examples, list):
        raise InvalidParameter("Expecting 'examples' value to be an list/array.")
    if not examples:
        raise MissingImage("'examples' value is an empty array.")
    _check_count(len(examples), max_images)
    return [
        ImageSource(image_of_example({**_features(context), **_features(example)}, place))
        for place, example in enumerate(examples)
    ]


def image_of_example(features: Mapping[str, Any], place: int) -> bytes:
    """The encoded image among the features of an example.

    Args:
        features: by name. An image is bytes, or as JSON has it; or a list of one of these.
        place: of the example.

    Raises:
        InvalidParameter: there are several images. MissingImage: there is none. MalformedBody: it is no base64.
    """
    given = [name for name in IMAGE_FEATURES if name in features]
    names = " or ".join(IMAGE_FEATURES)
    if not given:
        raise MissingImage(f"Example {place} has no image; give it as the feature {names}.")
    value = features[given[0]]
    values = value if isinstance(value, list) else [value]
    if len(given) > 1 or len(values) != 1:
        raise InvalidParameter(f"Example {place} must have exactly one image, as the feature {names}.")
    found = values[0] if isinstance(values[0], bytes) else _image(values[0], what=f"Example {place}")
    if not found:
        raise MissingImage(f"The image of example {place} is empty.")
    return found


def sources_of_pixels(batch: NDArray[np.float32]) -> list[PixelSource]:
    """The rows of pixels `[N, S, S, 3]` as sources: uint8 if they are whole numbers on the scale, else float32."""
    sources = []
    for row in batch:
        with np.errstate(invalid="ignore"):
            levels = row.astype(np.uint8)
        sources.append(PixelSource(levels if np.array_equal(levels, row) else row))
    return sources


def _read_instances(document: Document, model: ModelInfo, max_images: int) -> PredictBody:
    instances, name = document["instances"], signature_name(document)
    if isinstance(instances, Numbers):
        signature = predict_signature(model, name, inputs=_inputs_of(instances))
        sources = _batch_of_pixels(instances, signature, max_images)
        return PredictBody(signature=signature, sources=sources, by_row=True)
    if not isinstance(instances, list):
        raise InvalidParameter("Expecting 'instances' to be an list/array.")
    if not instances:
        raise MissingImage("No values in 'instances' array.")
    _check_count(len(instances), max_images)
    named = _is_named(instances[0])
    signature = predict_signature(model, name, inputs=_inputs_of(instances[0]))
    found: list[ImageSource | PixelSource] = []
    for place, instance in enumerate(instances):
        try:
            if _is_named(instance) != named:
                raise InvalidParameter("Expecting either objects with named inputs or plain values, not both.")
            value = _named_input(instance, signature, exactly=True) if named else instance
            found.append(_source(value, signature))
        except ServiceError as error:
            raise type(error)(f"Failed to process element: {place} of 'instances' list. Error: {error}") from error
    return PredictBody(signature=signature, sources=found, by_row=True)


def _read_inputs(document: Document, model: ModelInfo, max_images: int) -> PredictBody:
    inputs = document["inputs"]
    signature = predict_signature(model, signature_name(document), inputs=_inputs_of(inputs))
    value = _named_input(inputs, signature, exactly=False) if _is_named(inputs) else inputs
    if isinstance(value, Numbers):
        sources = _batch_of_pixels(value, signature, max_images)
        return PredictBody(signature=signature, sources=sources, by_row=False)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise MissingImage(f"Input {signature.input.name} is empty; give at least one image.")
    _check_count(len(values), max_images)
    found = []
    for place, image in enumerate(values):
        try:
            found.append(_source(image, signature))
        except ServiceError as error:
            raise type(error)(f"Input {signature.input.name}, element {place}: {error}") from error
    return PredictBody(signature=signature, sources=found, by_row=False)


def _is_named(value: object) -> bool:
    """Whether a value is an object with named inputs, not the value of an input itself."""
    return isinstance(value, dict) and not _is_base64(value)


def _inputs_of(value: Any) -> frozenset[str]:
    """The names of the inputs in a value, if it has names. Numbers without one can only be pixels."""
    if isinstance(value, Numbers):
        return frozenset({PIXELS})
    return frozenset(value) if _is_named(value) else frozenset()


def _is_base64(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def _named_input(values: Mapping[str, Any], signature: Signature, *, exactly: bool) -> Any:
    """The value of the signature's only input."""
    ours = signature.input.name
    given = [name for name in values if INPUT_NAMES.get(name, name) == ours]
    if len(given) != 1 or (exactly and len(values) != 1):
        shown = ", ".join(name[:SHOWN_NAME] for name in list(values)[:3]) or "none"
        raise InvalidParameter(
            f"JSON object: keys must be equal to: {ours}, for signature {signature.name}; not {shown}."
        )
    return values[given[0]]


def _source(value: Any, signature: Signature) -> ImageSource | PixelSource:
    if signature.input.name != IMAGE:
        if not isinstance(value, Numbers):
            raise InvalidParameter(f"{signature.input.name} must be numbers in lists, not {_kind(value)}.")
        return sources_of_pixels(value.array(signature.input.shape)[None])[0]
    image = _image(value, what="The image")
    if not image:
        raise MissingImage("The image is empty.")
    return ImageSource(image)


def _batch_of_pixels(numbers: Numbers, signature: Signature, max_images: int) -> list[PixelSource]:
    if signature.input.name == IMAGE:
        raise InvalidParameter(
            f'Signature {signature.name} takes encoded images, each as {{"b64": "..."}}, not numbers. Numbers go to '
            "signature pixels."
        )
    batch = numbers.batch(signature.input.shape, most=max_images)
    return sources_of_pixels(batch)


def _image(value: Any, *, what: str) -> bytes:
    """Bytes as JSON has them: `{"b64": ...}`; base64 without the object is taken, too."""
    if isinstance(value, dict):
        if not _is_base64(value):
            raise MalformedBody(f'{what}: not formatted correctly for base64 data, {{"b64": "..."}}.')
        value = value["b64"]
    if not isinstance(value, str):
        raise InvalidParameter(f'{what} must be {{"b64": "<base64>"}}, not {_kind(value)}.')
    return decode_base64(value, what=what)


def _features(example: Any) -> Mapping[str, Any]:
    if not isinstance(example, dict):
        raise InvalidParameter(f"Example must be JSON object but got {_kind(example)}.")
    return example


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise TooManyImages(f"The request has {count} rows; {most} are allowed.")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "numbers" if isinstance(value, Numbers) else "a number")
