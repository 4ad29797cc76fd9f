"""The wall clock is set back and forth by hours while requests are served; nothing may depend on it."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from condconv_serve.fronts.keys import new_key
from tests.e2e.server import Server, wait_for
from tests.fault.traffic import PATH, Traffic

# Debian 12's own faketime (0.9.10) breaks time.sleep from Python 3.11 on.
libfaketime = pytest.importorskip("libfaketime", reason="needs libfaketime: pip install --group clock")
LIBRARY = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"


def test_the_clock_jumps(tmp_path: Path) -> None:
    jump = tmp_path / "jump"
    jump.write_text("+0")
    secret, key = new_key("ci", requests_per_minute=600)
    variables = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(jump),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    keys = json.dumps({"keys": [key.model_dump()]})
    with Server(variables=variables, api_keys=keys) as server:
        server.client.headers["X-API-Key"] = secret
        traffic = Traffic.learn(server.client, 8)

        def hours_ahead() -> int:
            seen = parsedate_to_datetime(server.client.get("/livez").headers["date"]).timestamp()
            return round((seen - time.time()) / 3600)

        for hours in (0, 5, -5, 10_000, -10_000, 0):
            jump.write_text(f"{hours:+}h")
            wait_for(lambda hours=hours: hours_ahead() == hours)  # type: ignore[misc]
            for number in range(8):
                response = server.client.post(PATH, content=traffic.photos[number])
                traffic.check(number, response)
                (entry,) = response.json()["predictions"]
                assert 0 <= entry["timings_ms"]["total"] < 3_600_000
            assert server.client.get("/readyz").status_code == 200
