"""The signatures that a model offers: named pairs of an input and some outputs, as TensorFlow Serving calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from condconv_serve.domain import LABEL, PROBABILITIES, ModelInfo, OutputSpec
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.tensor_inference import IMAGE, PIXELS, inputs_of
from condconv_serve.tasks.named_outputs import DETECTIONS, outputs_of

DEFAULT_SIGNATURE = "serving_default"
"""For requests that name no signature."""
CLASSIFY = "classify"
"""The signature of `Classify`."""
ALL = "all"
"""Ends the names of signatures with all outputs."""
CLASSES = 5
"""How many classes `Classify` returns, the most probable ones."""
INPUT_NAMES: Mapping[str, str] = {"bytes": IMAGE, "image_bytes": IMAGE}
"""Other names that inputs often have, and ours."""

_USUAL = (PROBABILITIES, LABEL, *DETECTIONS)
METHODS = {"predict": "tensorflow/serving/predict", "classify": "tensorflow/serving/classify"}
"""TensorFlow's names of what a signature is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature.

    Attributes:
        name: of it.
        input: what a request holds; the shape is that of one row.
        outputs: what the answer holds; shapes are those of one row.
        method: what it is for.
    """

    name: str
    input: OutputSpec
    outputs: tuple[OutputSpec, ...]
    method: Literal["predict", "classify"] = "predict"


def signatures_of(model: ModelInfo) -> dict[str, Signature]:
    """All signatures of a model, by name.

    `serving_default` takes encoded images, `pixels` takes rows of pixels; both return probabilities and labels, or what
    was detected. Beside them there is one for each output alone, and one for all outputs, such as `routing`,
    `pixels_routing`, `all` and `pixels_all`.
    """
    every = outputs_of(model)
    usual = tuple(output for output in every if output.name in _USUAL)
    found: dict[str, Signature] = {}
    for given in inputs_of(model):
        first, prefix = (DEFAULT_SIGNATURE, "") if given.name == IMAGE else (given.name, f"{given.name}_")
        found[first] = Signature(name=first, input=given, outputs=usual or every)
        for name, outputs in {**{output.name: (output,) for output in every}, ALL: every}.items():
            found[prefix + name] = Signature(name=prefix + name, input=given, outputs=outputs)
    if model.task == "classification":
        found[CLASSIFY] = _classify(len(model.labels))
    return found


def predict_signature(model: ModelInfo, name: str | None, *, inputs: frozenset[str]) -> Signature:
    """The signature of a request to predict.

    Args:
        model: that is asked.
        name: of the signature. If there is none, or it is `serving_default`, the name of the input may choose `pixels`.
        inputs: names of the request's inputs, as far as it gives names.

    Raises:
        InvalidParameter: there is no such signature, or it isn't for predictions.
    """
    found, name = signatures_of(model), name or DEFAULT_SIGNATURE
    if name == DEFAULT_SIGNATURE and PIXELS in inputs and not inputs & {IMAGE, *INPUT_NAMES}:
        name = PIXELS
    if name not in found:
        known = ", ".join(other for other, signature in found.items() if signature.method == "predict")
        raise InvalidParameter(
            f'Serving signature name: "{name[:100]}" not found in signature def. {model.name} has: {known}.'
        )
    if found[name].method != "predict":
        raise InvalidParameter(f"The signature {name} is for requests to classify; name another one to predict.")
    return found[name]


def check_classify_signature(model: ModelInfo, name: str | None) -> None:
    """Check the signature that a request to classify names.

    Raises:
        InvalidParameter: it isn't for classification, or doesn't exist; or the model isn't for classification.
    """
    if model.task != "classification":
        raise InvalidParameter(
            f"Expected classification signature method_name to be {METHODS['classify']}. Was: {METHODS['predict']}. "
            f"{model.name} is a model for {model.task}; send it to predict."
        )
    if name in (None, "", DEFAULT_SIGNATURE, CLASSIFY):
        return
    found = signatures_of(model).get(str(name))
    if found is None:
        raise InvalidParameter(
            f"No signature was found with the name: {str(name)[:100]}. To classify, name {CLASSIFY} or none."
        )
    raise InvalidParameter(
        f"Expected classification signature method_name to be {METHODS['classify']}. Was: {METHODS[found.method]}. To "
        f"classify, name {CLASSIFY} or none."
    )


def regress_refusal(model: ModelInfo, name: str | None) -> InvalidParameter:
    """Why a request to regress is refused: no model here has a signature for it."""
    found = signatures_of(model).get(name or DEFAULT_SIGNATURE)
    if found is None:
        return InvalidParameter(
            f"No signature was found with the name: {str(name)[:100]}. {model.name} doesn't regress."
        )
    verbs = "predict or classify" if CLASSIFY in signatures_of(model) else "predict"
    return InvalidParameter(
        f"Expected regression signature method_name to be tensorflow/serving/regress. Was: {METHODS[found.method]}. "
        f"{model.name} is a model for {model.task}; send it to {verbs}."
    )


def _classify(classes: int) -> Signature:
    shape = (min(CLASSES, classes),)
    return Signature(
        name=CLASSIFY,
        input=OutputSpec("inputs", (), "bytes"),
        outputs=(OutputSpec("classes", shape, "str"), OutputSpec("scores", shape)),
        method="classify",
    )
