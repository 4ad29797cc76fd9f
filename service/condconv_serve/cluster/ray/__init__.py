"""The service as a Ray Serve application: ingress replicas have the fronts, model replicas have queue and engine.

Only `app`, `deployments`, `actor`, `advertising` and `exported` know Ray. All others are plain Python.
"""
