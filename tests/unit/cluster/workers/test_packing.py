"""Messages as plain tuples, and back."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from condconv_serve.cluster.workers.arena import Placed, layout_of
from condconv_serve.cluster.workers.messages import Cancel, Ended, Logged, Open, Returned, RowDone, RowMade
from condconv_serve.cluster.workers.packing import pack, unpack
from condconv_serve.domain import Copies, Placement
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import CorruptImage

PLACEMENT = Placement(photo_width=640, photo_height=480, left=-1.5, top=0.0, width=480.0, height=481.25)
LAYOUT, _ = layout_of({"logits": np.zeros(1000, np.float32), "routing": np.zeros((9, 4), np.float32)})
DONE = RowDone(0.1, 0.2, 0.3, 0.7, 4, PLACEMENT, "miss", LAYOUT)
ROW_MADE = RowMade(7, 1, 0.25, PLACEMENT, 2, 31, Placed("|u1", (224, 224, 3), 64), None, Copies(to=("2",)))
MESSAGES = [
    Open(7, 3, (None, b"digest"), 1, 123.5, "caller", Logged("id", "trace", "span", True), CacheUse(scope="a"), False),
    Open(8, 3, (None,), 0, float("inf"), "service", None, None, True),
    ROW_MADE,
    RowMade(8, 0, 0.0, None),
    Ended(7, (DONE, DONE._replace(placement=None, cache=None, layout=None)), None, 12),
    Ended(8),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_of_rows_come_out_as_they_went_in(message: Any) -> None:
    packed = pack(message)
    assert type(packed) is tuple
    assert b"condconv_serve.cluster" not in pickle.dumps(packed), "nothing in it costs a tuple with names"
    found = unpack(pickle.loads(pickle.dumps(packed)))
    assert type(found) is type(message)
    assert found == message
    for value, expected in zip(found, message, strict=True):
        assert type(value) is type(expected)


def test_rows_and_answers_without_a_slot_go_along() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    made = unpack(pickle.loads(pickle.dumps(pack(ROW_MADE._replace(placed=None, array=array)))))
    np.testing.assert_array_equal(made.array, array)
    ended = Ended(7, (DONE._replace(layout=None, tensors={"logits": array}), CorruptImage("Half of it.")))
    found = unpack(pickle.loads(pickle.dumps(pack(ended))))
    np.testing.assert_array_equal(found.outcomes[0].tensors["logits"], array)
    assert (type(found.outcomes[1]), str(found.outcomes[1])) == (CorruptImage, "Half of it.")


@pytest.mark.parametrize("message", [Cancel(3), Returned(4, (1, 2)), "other", 5, None])
def test_other_messages_stay_as_they_are(message: Any) -> None:
    assert pack(message) is message
    assert unpack(message) is message


@pytest.mark.parametrize("nonsense", [(), ("Cancel", 3), ("Ended",), ("RowMade", 1, 2), ("Open", *range(20)), ([], 1)])
def test_nonsense_is_refused(nonsense: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        unpack(nonsense)
