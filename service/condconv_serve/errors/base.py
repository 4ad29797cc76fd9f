"""The base of all errors."""

from __future__ import annotations

from typing import ClassVar, TypeVar

Error = TypeVar("Error", bound=BaseException)


class ServiceError(Exception):
    """Anything else that went wrong in the service; its log says what.

    The base of all errors that a caller may see. The message says what was wrong and what is allowed, in one or two
    sentences, without paths of the server.

    Attributes:
        status: the status code of a server's answer that said so; None where no server did.
        request_id: the id of that request, as the server's log has it.
        retry_after: seconds after which a new try makes sense, if it does and that is known.
    """

    slug: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    status: int | None = None
    request_id: str | None = None
    retry_after: float | None = None


def unexpected_error() -> ServiceError:
    """What a caller may see of a defect of ours. Log the defect itself."""
    return ServiceError("Something went wrong in the service; its log says what.")


def let_go(error: Error) -> Error:
    """Forget where an error, and those that led to it, were raised, once it is to be answered.

    The functions there have the request's images as variables, and often the error, too. Such a circle would last
    until the garbage collector looks at old objects, which services let it do rarely.
    """
    known: BaseException | None = error
    while known is not None:
        known.__traceback__ = None
        known = known.__context__
    return error
