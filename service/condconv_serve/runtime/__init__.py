"""Turns networks into engines and serves them: inference graphs, executors, and the registry of loaded models."""

import sys

# Whoever imports OpenVINO afterwards gets it without its telemetry, which reports every operation that is read to its
# makers, from a fork of this process.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
