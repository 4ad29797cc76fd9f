"""What fronts and engine say to each other can be pickled: errors, answers, and what is known of models."""

from __future__ import annotations

import math
import pickle
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from condconv_serve import errors
from condconv_serve.domain import (
    Ablated,
    Box,
    ClassScore,
    DetectedObject,
    Detection,
    EngineDescription,
    ImageResult,
    MadeRow,
    Placement,
    Prediction,
    RoutingOverrides,
    RoutingTrace,
    RowAnswer,
    Timings,
)
from condconv_serve.domain.facts import Deadline, deadline_by
from condconv_serve.errors import BundleError, CapacityError, CorruptImage, RemoteFailed, ServiceError, TooLittleMemory
from condconv_serve.fronts.keys import ApiKey
from condconv_serve.inference.batching import Priority
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.routing.state import RoutingState
from condconv_serve.serving.served import Served
from condconv_serve.serving.unserved import Trouble, Unserved, still_loading
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from condconv_serve.store.default import Default
from condconv_serve.telemetry.exposition import Exposed
from condconv_serve.telemetry.tally import Total, VersionTally
from tests.contract.fakes import detector_info, even_layout, model_info

LAYOUT = even_layout(("block_8", "block_9"), 3)
WEIGHTS = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
TIMINGS = Timings(decode=0.1, queue=0.2, inference=0.3, total=0.7)
PLACEMENT = Placement(photo_width=9, photo_height=8, left=-1.5, top=0.0, width=7.0, height=8.0)
BOX = Box(ymin=0.0, xmin=1.0, ymax=2.0, xmax=3.0)
CLASSIFIED = Prediction(
    best=ClassScore(3, "cat", "n3", 0.5),
    classes=(ClassScore(3, "cat", "n3", 0.5),),
    routing=RoutingTrace(LAYOUT, WEIGHTS),
    timings=TIMINGS,
    batch_size=2,
)
DETECTED = Detection(
    objects=(DetectedObject(index=1, label="cat", synset=None, score=0.5, box=BOX, box_normalized=BOX),),
    width=9,
    height=8,
    routing=RoutingTrace(LAYOUT, WEIGHTS),
    timings=TIMINGS,
    batch_size=2,
)
MODEL = model_info(layout=LAYOUT, profile=profile_of(np.tile(WEIGHTS, (30, 1, 1)), np.arange(30) % 2, LAYOUT))

VALUES = [
    MODEL,
    detector_info("finder"),
    EngineDescription(engine="native", precision="float32", device="cpu", reason="it is fast"),
    MadeRow(np.zeros((4, 4, 3), np.uint8), 0.5, PLACEMENT),
    RowAnswer(tensors={"logits": WEIGHTS[0]}, timings=TIMINGS, batch_size=2, placement=PLACEMENT),
    ImageResult(id="0", filename="a.jpg", prediction=CLASSIFIED),
    ImageResult(id="0", filename=None, prediction=DETECTED),
    RecentRequest(
        request_id="r",
        model="m",
        version="1",
        at=1.5,
        results=(ImageResult(id="0", filename=None, prediction=DETECTED),),
    ),
    RoutingOverrides(weights=np.full((2, 2, 3), np.nan, np.float32), uniform=np.eye(2, dtype=np.bool_)),
    Ablated(output={"logits": WEIGHTS}, queue=0.1, inference=0.2),
    RoutingState.empty(LAYOUT, model="m", version="1"),
    VersionStatus("1", "failed", "It is broken."),
    VersionTally(last_request=2.5, success=Total(1, 0.5), batches={4: Total(2, 0.25)}),
    Alias(versions={"1": 1, "2": 3}, previous={"1": 1}),
    Unserved(model=Trouble("Broken."), aliases={"canary": Trouble("Gone.", 5.0)}),
    still_loading("m", ["1"]),
    Served(default=Default(name="m", reason="only"), aliases={"m": {"stable": Alias(versions={"1": 1})}}),
    ApiKey(name="ann", scopes=("predict",), sha256="0" * 64, requests_per_minute=60),
    Exposed(b"up 1\n", "text/plain"),
    Priority.HIGH,
]


def plain(value: Any) -> Any:
    """A value with all that it consists of, comparable: the identity of models and arrays doesn't count."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value), {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if type(value).__module__.startswith("condconv_serve.") and hasattr(value, "__dict__") and not is_plain(value):
        return type(value), plain(vars(value))
    return value


def is_plain(value: Any) -> bool:
    return type(value).__eq__ is not object.__eq__


def passed(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_arrive_whole(value: Any) -> None:
    assert plain(passed(value)) == plain(value)


def every_error() -> list[type[ServiceError]]:
    found = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
    assert len(found) > 40
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_errors_arrive_with_all_that_they_say(kind: type[ServiceError]) -> None:
    error = kind("It was wrong.")
    error.status, error.request_id, error.retry_after = 503, "r", 2.5
    error.add_note("by the way")
    found = passed(error)
    assert type(found) is kind
    assert (str(found), vars(found)) == ("It was wrong.", vars(error))


@pytest.mark.parametrize(
    "error",
    [
        TooLittleMemory("Too little.", needs=2**33, retry_after=1.0),
        BundleError("Half a copy.", incomplete=True),
        RemoteFailed("Busy.", retry_after=3.0),
        *(kind("Later.", retry_after=2.0) for kind in CapacityError.__subclasses__()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_an_error_is_made_with_arrives(error: ServiceError) -> None:
    found = passed(error)
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_an_error_of_a_row_arrives_in_its_result() -> None:
    found = passed(ImageResult(id="0", filename=None, error=CorruptImage("broken")))
    assert isinstance(found.error, CorruptImage)
    assert str(found.error) == "broken"


@pytest.mark.parametrize("at", [math.inf, 85019.852698068])
def test_a_deadline_arrives_with_whose_it_is(at: float) -> None:
    found = passed(Deadline(at, by="caller"))
    assert (found, deadline_by(found)) == (at, "caller")


def test_a_request_that_was_answered_can_be_changed_after_it_arrived() -> None:
    request = VALUES[7]
    assert isinstance(request, RecentRequest)
    assert replace(passed(request), version="2").size == request.size
