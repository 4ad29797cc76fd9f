"""Which model is served: registry, readiness, and the store that it follows. Knows no TensorFlow."""
