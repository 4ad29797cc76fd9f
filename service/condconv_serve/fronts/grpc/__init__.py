"""The gRPC server, for every protocol over gRPC: calls, keys, errors, health, reflection, TLS.

To add a service:

1. Put its `.proto` files below `protos/<set>/`, in folders as their imports have them. Write only the messages and
   fields that are needed, with the published numbers. `make protos` compiles them into `protos/<set>.binpb`.
2. `MessageSet("<set>")` has the classes: `MESSAGES.message("package.Name")`.
3. Make a function that takes the `AppContext` and returns a `Service`: its full name, its front's name in metrics, a
   `Method` (or a `StreamMethod`) for each of its methods, and `MESSAGES.files`. A method is an async function of the
   message and the `Call`. It raises errors of `errors/`; `status.py` says which status each one is.
4. `grpc_port.py` lists these functions.

A method sees only requests whose key allows them, and nothing of gRPC. `call.facts` are the request's facts, and
`call.deadline(gatekeeper.deadline(...))` is when its client stops waiting. `fronts/oip/grpc.py` is an example.
"""

import os

# Clients that break off their TLS would fill the log with lines of the C library. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
