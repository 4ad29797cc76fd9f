"""Which tests run once more with servers of several processes: `make test-workers` sets `TEST_WORKERS`.

All whose file starts servers or whose fixtures do, and those marked `workers`, which are not in `make test`. Those that
are marked `one_process` are skipped, and the run's last lines say why.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

WORKERS = os.environ.get("TEST_WORKERS", "1")
"""How many fronts the servers of tests have, if a test doesn't say."""
SERVER_FIXTURES = {"real_server", "fake_server"}
STARTS_SERVERS = "tests.e2e.server"
"""What `Server` and `environment` of this module start has so many fronts. Other servers are in the test's process."""


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave only tests of servers, if they have several fronts, and skip those that need one process."""
    if WORKERS == "1":
        return
    left_out = [item for item in items if not _talks_to_a_server(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        if marker := item.get_closest_marker("one_process"):
            item.add_marker(pytest.mark.skip(reason=f"one process: {marker.args[0]}"))


def _talks_to_a_server(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    imported: Sequence[object] = tuple(vars(item.module).values())
    return bool(SERVER_FIXTURES & set(item.fixturenames)) or any(
        getattr(thing, "__module__", None) == STARTS_SERVERS
        and getattr(thing, "__name__", None) in ("Server", "environment")
        for thing in imported
    )
