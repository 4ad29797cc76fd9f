"""The service as a Ray Serve application: ingress replicas have the fronts, model replicas have queue and engine.

Only `app`, `actor` and `advertising` know Ray. All others are plain Python.
"""
