"""The server reports to nobody: no library in it calls home, or forks a process to do so."""

from __future__ import annotations

from condconv_serve.samples import SAMPLES
from tests.e2e.shared import SharedServer


def test_no_fork_no_look_up_no_connection(real_server: SharedServer) -> None:
    """Neither until now nor, as is checked when it ends, later in the session."""
    response = real_server.client.post("/predict", content=SAMPLES[0].read_bytes())
    assert response.status_code == 200
    assert real_server.connections_made == ""
