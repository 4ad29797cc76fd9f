"""The options of calls about images, and how a request says them."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, TypedDict

from condconv_serve.errors import InvalidParameter
from condconv_serve.results import OnError

SPLIT_KEY_HEADER = "X-Split-Key"
CACHE_CONTROL_HEADER = "Cache-Control"
MOST_SECONDS = 10**9
"""The longest time to wait. Sockets take no more than some billions."""


class CallOptions(TypedDict, total=False):
    """What every call about images takes.

    Attributes:
        model: name of the model; the server's default one if absent.
        version: its version, or an alias; the alias `default`, or else the newest version, if absent.
        timeout: seconds that you wait for each request, its repetitions included; the client's own if absent.
        priority: which images go first when many wait; normal if absent.
        split_key: where an alias splits traffic, equal keys get equal versions.
        no_cache: whether the images are computed even if the server's response cache has their answers; not if absent.
        on_error: what happens if one image among several fails; its result keeps the error if absent.
    """

    model: str | None
    version: str | None
    timeout: float | None
    priority: Literal["high", "normal", "low"]
    split_key: str | None
    no_cache: bool
    on_error: OnError


class ClassOptions(CallOptions, total=False):
    """What calls about classes take.

    Attributes:
        top_k: how many classes each image gets, best first; 5, or all if the model has fewer, if absent.
        threshold: of these, classes with a smaller probability are left out, 0 to 1; 0 if absent.
    """

    top_k: int | None
    threshold: float | None


class ObjectOptions(TypedDict, total=False):
    """What calls about objects take.

    Attributes:
        score_threshold: only objects with a higher score are returned, 0 to 1; 0.5 if absent.
        iou_threshold: of two boxes of a class that overlap by more (intersection over union, 0 to 1), only the one with
            the higher score is returned; 0.5 if absent.
        max_detections: how many objects to return at most, those with the highest scores, 1 to 1000; 100 if absent.
    """

    score_threshold: float | None
    iou_threshold: float | None
    max_detections: int | None


class PredictOptions(ClassOptions, total=False):
    """What `predict` takes.

    Attributes:
        routing: whether to return routing weights; not if absent.
    """

    routing: bool


class DetectOptions(CallOptions, ObjectOptions, total=False):
    """What `detect` takes.

    Attributes:
        routing: whether to return routing weights; not if absent.
    """

    routing: bool


class RoutingOptions(ClassOptions, ObjectOptions, total=False):
    """What `routing` takes: the options of classes with a classifier, those of objects with a detector."""


class FeaturesOptions(CallOptions, total=False):
    """What `features` takes.

    Attributes:
        logits: whether to return the logits, too; not if absent.
    """

    logits: bool


class AblationOptions(TypedDict, total=False):
    """What `ablation` takes beside its routings: as other calls."""

    model: str | None
    version: str | None
    timeout: float | None


class DetectionAblationOptions(AblationOptions, ObjectOptions, total=False):
    """What `detection_ablation` takes beside its routings."""


_OWN = ("timeout", "split_key", "no_cache", "on_error")
"""Options that are no parameters of the server."""


def check_options(given: Mapping[str, Any], kind: Any, *, of: str) -> None:
    """Refuse what a call doesn't take.

    Raises:
        TypeError: there is no such option.
        InvalidParameter: its value is impossible.
    """
    known = kind.__annotations__
    for name in given:
        if name not in known:
            raise TypeError(f"{of}() got an unexpected keyword argument {name!r}. It takes {', '.join(known)}.")
    check_seconds("timeout", given.get("timeout"))
    if given.get("on_error", "keep") not in ("keep", "raise"):
        raise InvalidParameter(f"on_error may be keep or raise, not {given['on_error']!r}.")
    if not isinstance(given.get("no_cache", False), bool):
        raise InvalidParameter(f"no_cache is True or False, not {given['no_cache']!r}.")
    key = given.get("split_key")
    if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
        raise InvalidParameter("split_key may have printable characters of ASCII only, since it is a header.")


def check_seconds(name: str, value: Any) -> None:
    """Refuse an impossible time.

    Raises:
        InvalidParameter: it isn't above 0, or is more than `MOST_SECONDS`.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= MOST_SECONDS):
        raise InvalidParameter(f"{name} is a time in seconds, more than 0 and at most {MOST_SECONDS:,}, not {value!r}.")


def parameters_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are the server's parameters."""
    return {name: value for name, value in given.items() if value is not None and name not in _OWN}


def query_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as a query has them."""
    return {name: as_text(value) for name, value in parameters.items() if value is not None}


def as_text(value: Any) -> str:
    """A parameter as a query has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def headers_of(given: Mapping[str, Any]) -> dict[str, str]:
    """The options that are headers."""
    key = given.get("split_key")
    return {
        **({} if key is None else {SPLIT_KEY_HEADER: key}),
        **({CACHE_CONTROL_HEADER: "no-cache"} if given.get("no_cache") else {}),
    }
