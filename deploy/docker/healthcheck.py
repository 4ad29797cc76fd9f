"""Ends with 0 if the server in this container takes requests, and with 1, and the reason, if it doesn't."""

import http.client
import os
import sys

# The metrics port has connections left when clients have taken all of the other one.
port = os.environ.get("CONDCONV_METRICS_PORT") or os.environ.get("CONDCONV_PORT", "8000")
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=4)
try:
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    print(answer.status, answer.read(500).decode(errors="replace"))
    sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"no answer: {error}")
