"""Errors in the words of gRPC."""

from __future__ import annotations

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from condconv_serve.errors import InvalidParameter, QueueFull
from condconv_serve.fronts.grpc.status import DETAILS_KEY, HTTP_STATUS, STATUS, refusal
from condconv_serve.fronts.native import problems


def details(error):
    said = refusal(error)
    return said, Status.FromString(dict(said.trailing_metadata)[DETAILS_KEY])


def test_details_name_the_slug():
    said, status = details(InvalidParameter("No."))
    assert (said.code, said.message) == (StatusCode.INVALID_ARGUMENT, "No.")
    assert (status.code, status.message) == (Code.INVALID_ARGUMENT, "No.")
    info = ErrorInfo()
    assert [detail.Unpack(info) for detail in status.details] == [True]
    assert (info.reason, info.domain) == ("invalid_parameter", "condconv-serve")


@pytest.mark.parametrize(("seconds", "told"), [(1.5, 1.5), (0.0, 0.001), (None, None)])
def test_details_say_when_to_try_again(seconds, told):
    _, status = details(QueueFull("Full.", retry_after=seconds))
    retry = RetryInfo()
    found = [retry.retry_delay.ToTimedelta().total_seconds() for detail in status.details if detail.Unpack(retry)]
    assert found == ([] if told is None else [told])


def test_every_status_code_has_one_of_http():
    assert set(HTTP_STATUS) == set(StatusCode)


def test_an_error_is_ours_or_the_clients_in_all_fronts():
    """One rule counts the failures of all fronts by their codes."""
    ours = {slug for slug, code in STATUS.items() if HTTP_STATUS[code] >= 500}
    native = {slug for slug, code in problems.STATUS.items() if code >= 500}
    assert ours ^ native == {"not_supported"}, "it only happens here"
