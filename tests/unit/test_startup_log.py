"""What the log says of ports and keys when a server starts."""

import logging

import pytest

from condconv_serve.fronts.keys import KeyRing, parse_keys
from condconv_serve.http.server import listen, url
from condconv_serve.startup_log import log_ports

KEYS = '{"keys": [{"name": "ann", "scopes": ["predict"], "sha256": "%s"}]}' % ("0" * 64)


@pytest.mark.parametrize(
    ("address", "keys", "level", "says"),
    [
        ("127.0.0.1", None, logging.INFO, "only this machine may use the service"),
        ("0.0.0.0", None, logging.WARNING, "anyone who can reach"),
        ("0.0.0.0", KEYS, logging.INFO, "1 API keys are accepted: ann"),
    ],
)
def test_ports_and_who_may_use_them(address, keys, level, says, caplog):
    ring = None if keys is None else KeyRing(parse_keys(keys))
    with listen(address, 0) as listener, listen("127.0.0.1", 0) as probes, caplog.at_level(logging.INFO):
        log_ports(listener, probes, ring)
        where, metrics, who = caplog.records
        assert where.message == f"listening on {url(listener)}"
        assert metrics.message == f"metrics and probes on {url(probes)}"
    assert who.levelno == level
    assert says in who.message
    assert {record.name for record in caplog.records} == {"condconv_serve.startup_log"}, "not the log of requests"
