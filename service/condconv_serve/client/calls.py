"""Requests to a server as values: what each call sends, and what reads its answer. Nothing is sent here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from condconv_serve.client.answers import Reply, nothing, read_health, read_recent, reader
from condconv_serve.client.live import LiveRouting
from condconv_serve.client.models import Aliases, AliasTarget, ModelDetails, Models, ModelSummary, VersionState
from condconv_serve.client.options import AblationOptions, parameters_of, query_of
from condconv_serve.domain import ImageSource, RoutingChange, Variant
from condconv_serve.errors import InvalidParameter
from condconv_serve.results import DetectionAblation, ImageAblation, ImageRouting

Answer = TypeVar("Answer")
Ablation = TypeVar("Ablation", ImageAblation, DetectionAblation)

LOAD_SECONDS = 600.0
"""A version may be large, and its disk slow."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Answer]):
    """A request.

    Attributes:
        method: of HTTP.
        path: below the server's address, quoted.
        read: makes the answer of a reply, or raises the error that it tells.
        query: parameters.
        headers: those of this request alone.
        content: the body, if it is one image.
        files: the body, if it is several images.
        json: the body, if it is a document.
        seconds: how long everything may take, repetitions included; the client's own limit if None.
        repeatable: whether the request may be sent again when its answer is lost.
        timed: whether the server is told how long you wait.
    """

    method: str
    path: str
    read: Callable[[Reply], Answer]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[bytes] = ()
    json: Any = None
    seconds: float | None = None
    repeatable: bool = True
    timed: bool = False


def place(*parts: str | int) -> str:
    """A path of these parts, whatever characters they have; a version may be a number.

    Raises:
        InvalidParameter: a part is no name.
    """
    for part in parts:
        if not isinstance(part, str | int) or isinstance(part, bool) or part == "":
            raise InvalidParameter(f"Names and versions are text that is not empty, not {part!r}.")
        if part in (".", ".."):  # a path drops them
            raise InvalidParameter(f"{part!r} can't be a name, a version or an id.")
    return "/" + "/".join(quote(str(part), safe="", errors="surrogateescape") for part in parts)


def ablation(
    image: ImageSource,
    *,
    blocks: Sequence[str] | None,
    experts: Sequence[int] | None,
    variants: Sequence[Variant | RoutingChange] | None,
    uniform: bool,
    routing: bool,
    options: AblationOptions,
    read: Callable[[Reply, ImageSource], Ablation],
) -> Call[Ablation]:
    """What the answer to one image would have been with other routings; `read` makes it of a reply."""
    try:
        asked = {
            "blocks": None if blocks is None else _names(blocks),
            "experts": None if experts is None else [index(expert) for expert in experts],
            "variants": None if variants is None else [_variant(variant) for variant in variants],
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidParameter(
            "blocks is a list of names, experts one of whole numbers, variants one of Variant or RoutingChange."
        ) from error
    wanted = {**parameters_of(options), **asked, "uniform": uniform, "routing": routing}
    document = {name: value for name, value in wanted.items() if value is not None}
    # The variants may be too long for a query, and for a field of a form.
    return Call(
        method="POST",
        path="/routing/ablation",
        read=lambda reply: read(reply, image),
        json={"images": [base64.b64encode(image.data).decode()], **document},
        seconds=options.get("timeout"),
        timed=True,
    )


def _names(blocks: Sequence[str]) -> list[str]:
    if isinstance(blocks, str):  # its letters would be taken for names
        raise TypeError("a name in the place of a list")
    return list(blocks)


def _variant(variant: Variant | RoutingChange) -> dict[str, Any]:
    if isinstance(variant, RoutingChange):
        variant = Variant(changes=(variant,))
    changes = [
        {
            "block": change.block,
            **({} if change.off is None else {"off": [index(expert) for expert in change.off]}),
            **({"uniform": True} if change.uniform else {}),
            **(
                {} if change.weights is None else {"weights": [None if w is None else float(w) for w in change.weights]}
            ),
        }
        for change in variant.changes
    ]
    return {"changes": changes, **({"name": variant.name} if variant.name else {})}


def live_routing(
    *, model: str | None = None, version: str | None = None, window: str | None = None, classes: int | None = None
) -> Call[LiveRouting]:
    """What live traffic does."""
    query = query_of({"model": model, "version": version, "window": window, "classes": classes})
    return Call(method="GET", path="/routing", read=reader(LiveRouting), query=query)


def recent_routing(request_id: str) -> Call[list[ImageRouting]]:
    """The answer to a recent request."""
    return Call(method="GET", path=place("routing", request_id), read=read_recent)


def models() -> Call[tuple[ModelSummary, ...]]:
    """All models of the store."""
    read = reader(Models)
    return Call(method="GET", path="/models", read=lambda reply: read(reply).models)


def model(name: str, version: str | None) -> Call[ModelDetails]:
    """One served version in full."""
    query = query_of({"version": version})
    return Call(method="GET", path=place("models", name), read=reader(ModelDetails), query=query)


def load_version(name: str, version: str, *, seconds: float = LOAD_SECONDS) -> Call[VersionState]:
    """Load a version."""
    path = place("models", name, "versions", version, "load")
    return Call(method="POST", path=path, read=reader(VersionState), seconds=seconds, repeatable=False)


def unload_version(name: str, version: str) -> Call[VersionState]:
    """Unload a version."""
    path = place("models", name, "versions", version, "unload")
    return Call(method="POST", path=path, read=reader(VersionState), repeatable=False)


def aliases(name: str) -> Call[Mapping[str, AliasTarget]]:
    """A model's aliases."""
    read = reader(Aliases)
    return Call(method="GET", path=place("models", name, "aliases"), read=lambda reply: read(reply).aliases)


def set_alias(
    name: str,
    alias: str,
    versions: str | Mapping[str, int],
    *,
    mirror: Mapping[str, int] | None = None,
    seconds: float = LOAD_SECONDS,
) -> Call[AliasTarget]:
    """Point an alias at versions."""
    if not isinstance(versions, str | int | Mapping) or isinstance(versions, bool):
        raise InvalidParameter(f"An alias points at a version, or at versions with their weights, not {versions!r}.")
    body: dict[str, object] = (
        {"versions": dict(versions)} if isinstance(versions, Mapping) else {"version": str(versions)}
    )
    if mirror:
        body["mirror"] = dict(mirror)
    path = place("models", name, "aliases", alias)
    return Call(method="PUT", path=path, read=reader(AliasTarget), json=body, seconds=seconds, repeatable=False)


def roll_back_alias(name: str, alias: str, *, seconds: float = LOAD_SECONDS) -> Call[AliasTarget]:
    """Point an alias back."""
    path = place("models", name, "aliases", alias, "rollback")
    return Call(method="POST", path=path, read=reader(AliasTarget), seconds=seconds, repeatable=False)


def delete_alias(name: str, alias: str) -> Call[None]:
    """Remove an alias."""
    return Call(method="DELETE", path=place("models", name, "aliases", alias), read=nothing, repeatable=False)


def ready(*, seconds: float | None = None) -> Call[None]:
    """Whether the server takes requests: an error if it doesn't."""
    return Call(method="GET", path="/readyz", read=read_health, seconds=seconds, repeatable=False)
