"""What clients send along with a call."""

from __future__ import annotations

import pytest

from condconv_serve.fronts.grpc.metadata import readable


@pytest.mark.parametrize(
    ("metadata", "read"),
    [
        (None, {}),
        ([("a", "1"), ("a", "2"), ("b-bin", b"3")], {"a": "2"}),
        ([("cache-control", "no-store"), ("x", "y"), ("cache-control", "max-age=5")],
         {"cache-control": "no-store, max-age=5", "x": "y"}),
        ([("x-api-key", "one"), ("x-api-key", "two")], {"x-api-key": "two"}),
    ],
)  # fmt: skip
def test_metadata_by_name(metadata: list[tuple[str, str | bytes]] | None, read: dict[str, str]) -> None:
    assert readable(metadata) == read
