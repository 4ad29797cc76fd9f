"""Which models are served: registry, readiness, and following the store. Knows no TensorFlow."""
