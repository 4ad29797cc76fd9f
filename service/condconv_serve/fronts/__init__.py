"""One package per protocol, and the gatekeeper that all of them share."""
