"""What Ray doesn't tell in public: whether a call that was cancelled had been given to a replica."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.handle import DeploymentResponse

from condconv_serve.cluster.ray.deployments import _unassigned

pytestmark = pytest.mark.ray


class Assigned:
    def cancel(self) -> None:
        pass


def test_a_call_that_waits_for_a_replica_is_unassigned():
    call: Any = DeploymentResponse(Future(), SimpleNamespace(request_id="r"))
    call.cancel()
    assert _unassigned(call)


def test_a_call_that_a_replica_has_is_assigned():
    assigning: Future[Any] = Future()
    assigning.set_result(Assigned())
    call: Any = DeploymentResponse(assigning, SimpleNamespace(request_id="r"))
    call.cancel()
    assert not _unassigned(call)


def test_where_another_release_of_ray_differs_all_calls_are_assigned():
    assert not _unassigned(object())
