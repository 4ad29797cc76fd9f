"""Connections of all fronts."""

from __future__ import annotations

from pathlib import Path

from condconv_serve.cluster.workers.connection_counts import ConnectionCounts


def test_each_front_hears_of_the_connections_of_the_others(tmp_path: Path) -> None:
    supervisor, *fronts = (ConnectionCounts(tmp_path, fronts=3) for _ in range(4))
    assert [front.tell(number, 10 * number) for number, front in enumerate(fronts, 1)] == [0, 10, 30]
    assert fronts[0].tell(1, 11) == 50
    supervisor.tell(3, 0)  # it has died
    assert fronts[0].tell(1, 11) == 20
    assert ConnectionCounts(tmp_path, fronts=3).tell(3, 1) == 31
