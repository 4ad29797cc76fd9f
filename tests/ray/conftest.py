"""A Ray cluster of two nodes on this machine, and the service on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ray.house import House

_found = find_spec("ray")
# This folder has Ray's name, too, and may be found as a package without a file of its own.
INSTALLED = _found is not None and _found.origin is not None
if not INSTALLED:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if INSTALLED else "Ray isn't installed here, so its tests are left out: make test-ray"


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """The cluster; it is started once, since that takes a while."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"
    from tests.ray.house import House

    with House() as house:
        yield house
