"""Python's interpreter in a process that serves: what would hold up requests is made rarer or shorter."""

from __future__ import annotations

import sys

from condconv_serve.machine.memory import calm_garbage_collection

SWITCH_SECONDS = 0.0005
"""How long a thread may compute in Python while another one waits for its turn; Python's own choice is ten times that.
A request takes a turn some hundred times, and a thread that builds a model gives none away by itself."""


def serve_rather_than_compute() -> None:
    """Set the interpreter up; call it once, when everything has been imported."""
    calm_garbage_collection()
    sys.setswitchinterval(SWITCH_SECONDS)
