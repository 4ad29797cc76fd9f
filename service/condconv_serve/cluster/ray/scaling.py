"""How many model replicas there should be: by the rows that wait or are being computed.

Ray Serve copies this module into its controller, so it imports nothing of ours.
"""

from __future__ import annotations

import math
from typing import Any

ROWS = "condconv_rows"
"""Name of the figure that each replica reports: its rows that wait or are being computed."""


class ByRows:
    """An autoscaling policy of Ray Serve, which applies its delays, factors, and bounds afterwards."""

    def __init__(self, *, target_rows: float) -> None:
        """Aim at `target_rows` for each replica."""
        self._target_rows = target_rows

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return how many replicas there should be, and no state."""
        rows = (context.aggregated_metrics or {}).get(ROWS, {})
        if not rows:  # nobody has reported yet
            return context.target_num_replicas, {}
        # Replicas that haven't reported yet have nothing to do.
        return max(1, math.ceil(sum(rows.values()) / self._target_rows)), {}
