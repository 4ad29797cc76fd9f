"""Errors over gRPC: one table of status codes, and details that programs can read (google.rpc.Status)."""

from __future__ import annotations

from dataclasses import dataclass

from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from condconv_serve.errors import ServiceError

STATUS = {
    "internal_error": StatusCode.INTERNAL,
    "invalid_parameter": StatusCode.INVALID_ARGUMENT,
    "malformed_request": StatusCode.INVALID_ARGUMENT,
    "headers_too_large": StatusCode.RESOURCE_EXHAUSTED,
    "request_timeout": StatusCode.ABORTED,
    "malformed_body": StatusCode.INVALID_ARGUMENT,
    "missing_image": StatusCode.INVALID_ARGUMENT,
    "body_too_large": StatusCode.RESOURCE_EXHAUSTED,
    "too_many_images": StatusCode.INVALID_ARGUMENT,
    "unsupported_body": StatusCode.INVALID_ARGUMENT,
    "unsupported_encoding": StatusCode.UNIMPLEMENTED,
    "not_supported": StatusCode.UNIMPLEMENTED,
    "not_found": StatusCode.NOT_FOUND,
    "model_not_found": StatusCode.NOT_FOUND,
    "version_not_found": StatusCode.NOT_FOUND,
    "alias_not_found": StatusCode.NOT_FOUND,
    "version_in_use": StatusCode.FAILED_PRECONDITION,
    "store_not_writable": StatusCode.FAILED_PRECONDITION,
    "routing_not_found": StatusCode.NOT_FOUND,
    "not_cached": StatusCode.DEADLINE_EXCEEDED,
    "unauthenticated": StatusCode.UNAUTHENTICATED,
    "forbidden": StatusCode.PERMISSION_DENIED,
    "unsupported_image": StatusCode.INVALID_ARGUMENT,
    "image_too_large": StatusCode.INVALID_ARGUMENT,
    "corrupt_image": StatusCode.INVALID_ARGUMENT,
    "rate_limited": StatusCode.RESOURCE_EXHAUSTED,
    "too_many_connections": StatusCode.UNAVAILABLE,
    "queue_full": StatusCode.RESOURCE_EXHAUSTED,
    "ablation_busy": StatusCode.RESOURCE_EXHAUSTED,
    "wait_too_long": StatusCode.RESOURCE_EXHAUSTED,
    "not_ready": StatusCode.UNAVAILABLE,
    "model_unavailable": StatusCode.UNAVAILABLE,
    "no_default_model": StatusCode.UNAVAILABLE,
    "store_unavailable": StatusCode.UNAVAILABLE,
    "draining": StatusCode.UNAVAILABLE,
    "engine_stalled": StatusCode.UNAVAILABLE,
    "out_of_memory": StatusCode.UNAVAILABLE,
    "too_little_memory": StatusCode.UNAVAILABLE,
    "deadline_exceeded": StatusCode.DEADLINE_EXCEEDED,
    "inference_failed": StatusCode.INTERNAL,
    "invalid_bundle": StatusCode.FAILED_PRECONDITION,
    "import_failed": StatusCode.INTERNAL,
    "invalid_data_set": StatusCode.INTERNAL,
    "remote_failed": StatusCode.UNAVAILABLE,
    "download_failed": StatusCode.UNAVAILABLE,
    "invalid_configuration": StatusCode.INTERNAL,
}
"""Status code of every error's slug."""

HTTP_STATUS = {
    StatusCode.OK: 200,
    StatusCode.CANCELLED: 499,
    StatusCode.UNKNOWN: 500,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    # By google.rpc.Code it is 501. But then a client that asks for what we don't have would count as our failure.
    StatusCode.UNIMPLEMENTED: 404,
    StatusCode.INTERNAL: 500,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DATA_LOSS: 500,
    StatusCode.UNAUTHENTICATED: 401,
}
"""What metrics show for a status code, as `google.rpc.Code` says: so one rule counts the failures of all fronts."""

DETAILS_KEY = "grpc-status-details-bin"
"""Name of the trailing metadata that holds a serialised `google.rpc.Status`."""

DOMAIN = "condconv-serve"
"""Whose slugs the `reason` of `google.rpc.ErrorInfo` are."""

MAX_MESSAGE = 1024
"""Most bytes of a message. Clients refuse trailers with more than 8 KiB, and these hold it twice: as it is, and with
three characters for each byte that isn't ASCII."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in the words of gRPC."""

    code: StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def refusal(error: ServiceError) -> Refusal:
    """Say an error in the words of gRPC.

    The details hold a `google.rpc.ErrorInfo` with the slug, and a `google.rpc.RetryInfo` if a new try makes sense.
    """
    code, message = STATUS[error.slug], str(error)
    encoded = message.encode(errors="replace")
    if len(encoded) > MAX_MESSAGE:
        message = encoded[: MAX_MESSAGE - 3].decode(errors="ignore") + "..."
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(ErrorInfo(reason=error.slug, domain=DOMAIN))
    if error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(max(round(error.retry_after * 1e3), 1))
        status.details.add().Pack(retry)
    return Refusal(code, message, ((DETAILS_KEY, status.SerializeToString()),))
