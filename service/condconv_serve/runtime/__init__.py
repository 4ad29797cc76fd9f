"""Turns networks into engines: inference graphs, lowerings, TensorFlow, OpenVINO and XLA."""

import sys

# Imported after this, OpenVINO runs without its telemetry, which forks this process and reports every operation that it
# reads to OpenVINO's makers.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
