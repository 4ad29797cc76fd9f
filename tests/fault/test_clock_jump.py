"""The wall clock is set back and forth by hours while requests are served; nothing may depend on it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from service.keys import new_key
from tests.e2e.server import Server
from tests.fault.traffic import PATH, Traffic

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

pytestmark = pytest.mark.skipif(
    not LIBRARIES or shutil.which("faketime") is None, reason="needs faketime: apt-get install faketime"
)


def test_the_clock_jumps(tmp_path: Path) -> None:
    jump = tmp_path / "jump"
    jump.write_text("+0")
    secret, key = new_key("ci", requests_per_minute=600)
    variables = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(jump),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    keys = json.dumps({"keys": [key.model_dump()]})
    with Server(variables=variables, api_keys=keys, stall_timeout=20, request_timeout=10) as server:
        server.client.headers["X-API-Key"] = secret
        traffic = Traffic.learn(server.client, 8)
        for hours in (0, 5, -5, 10_000, -10_000, 0):
            jump.write_text(f"{hours:+}h")
            time.sleep(1.2)
            for number in range(8):
                response = server.client.post(PATH, content=traffic.photos[number])
                traffic.check(number, response)
                (entry,) = response.json()["predictions"]
                assert 0 <= entry["timings_ms"]["total"] < 10_000
            assert server.client.get("/readyz").status_code == 200
