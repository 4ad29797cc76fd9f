"""The gRPC port and its settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.grpc_port import GrpcPort
from condconv_serve.settings import Settings
from tests.contract.fronts import house_with_keys
from tests.contract.grpc_calls import taken_port


@pytest.mark.parametrize(
    "settings",
    [
        {"grpc_tls_key": "tls.key"},
        {"grpc_tls_certificate": "tls.crt"},
        {"grpc_tls_client_ca": "ca.crt"},
        {"grpc_tls_certificate": "tls.crt", "grpc_tls_client_ca": "ca.crt"},
    ],
)
async def test_settings_of_tls_go_together(settings):
    async with house_with_keys() as (_, context):
        with pytest.raises(ConfigurationError, match="needs both"):
            GrpcPort.of(Settings(grpc_port=0, **settings), context, print)


async def test_a_port_that_is_taken_is_a_failure():
    failures = []
    async with house_with_keys() as (_, context):
        with taken_port() as taken:
            async with GrpcPort.of(Settings(grpc_port=taken), context, failures.append).serving("127.0.0.1"):
                pass
    assert [type(error) for error in failures] == [ConfigurationError]


def test_without_a_port_grpc_is_not_imported():
    program = "import sys, condconv_serve.bootstrap; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
