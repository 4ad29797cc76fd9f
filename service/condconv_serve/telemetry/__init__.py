"""Metrics, logs and traces. Images are never in them."""
