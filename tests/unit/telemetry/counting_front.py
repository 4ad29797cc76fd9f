"""A front process that does nothing but count, as it is told on its standard input."""

from __future__ import annotations

import sys

from prometheus_client import CollectorRegistry, disable_created_metrics

from condconv_serve.telemetry.front_files import ProcessFigures
from condconv_serve.telemetry.metrics import Metrics


def count(metrics: Metrics, number: int) -> None:
    """What a front counts, more or less of it; and what it must leave to the engine."""
    for code in (200, 429):
        metrics.requests.labels("native", "/predict", "POST", code, "").inc(number)
    for place in range(number):
        metrics.request_seconds.labels("native", f"/route-{number % 2}").observe(0.01 * place)
        metrics.count_objects("finder", [0.25, 0.75])
    metrics.lingering_connections.set(number)
    metrics.queue_rows.set(1000)


def main() -> None:
    disable_created_metrics()
    metrics, figures = Metrics(CollectorRegistry()), ProcessFigures()
    for line in sys.stdin:
        if line == "for ever\n":
            while True:
                metrics.padding_rows.inc()
        count(metrics, int(line))
        figures.update()
        print("counted", flush=True)


if __name__ == "__main__":
    main()
