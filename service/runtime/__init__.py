"""Turns networks into engines and serves them: inference graphs, executors, and the registry of loaded models."""
