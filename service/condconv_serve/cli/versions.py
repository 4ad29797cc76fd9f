"""Commands that change which versions serve: on a running server, or in the store that servers follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from condconv_serve.cli.common import ApiKey, Json, Store, friendly, read_settings
from condconv_serve.cli.output import err, print_json, say
from condconv_serve.cli.tables import print_listing
from condconv_serve.errors import InvalidParameter

if TYPE_CHECKING:
    from condconv_serve.client import ShadowComparison

app = typer.Typer()

Server = Annotated[
    str, typer.Option("--server", metavar="URL", help="Where the server listens.", envvar="CONDCONV_URL")
]
MaybeServer = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Ask this server, which loads what the alias needs first. Default: change the store; servers that use it "
        "follow.",
        envvar="CONDCONV_URL",
    ),
]
ServerOrStore = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Ask this server. Default: look at the store.", envvar="CONDCONV_URL"),
]
AdminKey = Annotated[
    str | None,
    typer.Option("--api-key", help="A key with the scope admin.", envvar="CONDCONV_API_KEY", show_envvar=True),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Model.")]
AliasName = Annotated[
    str,
    typer.Argument(
        metavar="ALIAS",
        help="Name of the alias, such as stable or canary. Requests that name no version get the alias default.",
    ),
]
Version = Annotated[str, typer.Argument(metavar="NAME/VERSION", help="Model, and a version of it in the store.")]
LOCAL = "http://127.0.0.1:8000"


class PointsAt(Protocol):
    """An alias as the store or a server describes it."""

    @property
    def versions(self) -> Mapping[str, int]:
        """Versions with their relative weights."""
        ...

    @property
    def mirror(self) -> Mapping[str, int]:
        """Versions that get copies, with the percentage for each."""
        ...


@app.command("load", epilog="Example: [bold]condconv models load b0-8e/2[/]")
@friendly
def load(version: Version, server: Server = LOCAL, api_key: AdminKey = None) -> None:
    """Make a running server load a version from its store, and keep it."""
    from condconv_serve.client import Client

    with Client(server, api_key=api_key, retries=0) as client:
        say(f"{version} is {client.load_version(*_split(version)).state}")


@app.command("unload", epilog="Example: [bold]condconv models unload b0-8e/1[/]")
@friendly
def unload(version: Version, server: Server = LOCAL, api_key: AdminKey = None) -> None:
    """Make a running server unload a version."""
    from condconv_serve.client import Client

    with Client(server, api_key=api_key, retries=0) as client:
        say(f"{version} is {client.unload_version(*_split(version)).state}")


@app.command("alias", epilog="Example: [bold]condconv models alias b0-8e stable 1=90 2=10[/]")
@friendly
def alias(
    name: Name,
    alias_name: AliasName,
    versions: Annotated[
        list[str],
        typer.Argument(
            metavar="VERSION[=WEIGHT]...", help="The version to point at, or several with weights, such as 1=90 2=10."
        ),
    ],
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERSION[=PERCENT]",
            help="Copy requests to this version, too, or a percentage of them, and compare the answers; callers get "
            "the others. You can give several. Default: what was mirrored before ends.",
        ),
    ] = None,
    model_store: Store = None,
    server: MaybeServer = None,
    api_key: AdminKey = None,
) -> None:
    """Point an alias at a version, or split its traffic over several by weight, or try one on copies of requests."""
    from condconv_serve.client import Client
    from condconv_serve.store import Catalog
    from condconv_serve.store.aliases import set_alias

    split, copies = _weights(versions), _percentages(mirror or [])
    if server is not None:
        with Client(server, api_key=api_key, retries=0) as client:
            _print_alias(name, alias_name, client.set_alias(name, alias_name, split, mirror=copies))
        return
    store = read_settings(model_store=model_store).model_store
    for version in (*split, *copies):
        Catalog(store).find(name, version)
    _print_alias(name, alias_name, set_alias(store, name, alias_name, split, mirror=copies))


@app.command("rollback", epilog="Example: [bold]condconv models rollback b0-8e stable[/]")
@friendly
def roll_back(
    name: Name, alias_name: AliasName, model_store: Store = None, server: MaybeServer = None, api_key: AdminKey = None
) -> None:
    """Point an alias back to where it pointed before. A second rollback undoes the first."""
    from condconv_serve.client import Client
    from condconv_serve.store import Catalog
    from condconv_serve.store import aliases as stored

    if server is not None:
        with Client(server, api_key=api_key, retries=0) as client:
            _print_alias(name, alias_name, client.roll_back_alias(name, alias_name))
        return
    store = read_settings(model_store=model_store).model_store
    Catalog(store).find(name)
    _print_alias(name, alias_name, stored.roll_back(store, name, alias_name))


@app.command("unalias", epilog="Example: [bold]condconv models unalias b0-8e canary[/]")
@friendly
def unalias(
    name: Name, alias_name: AliasName, model_store: Store = None, server: MaybeServer = None, api_key: AdminKey = None
) -> None:
    """Remove an alias."""
    from condconv_serve.client import Client
    from condconv_serve.store import Catalog
    from condconv_serve.store.aliases import delete_alias

    if server is not None:
        with Client(server, api_key=api_key, retries=0) as client:
            client.delete_alias(name, alias_name)
    else:
        store = read_settings(model_store=model_store).model_store
        Catalog(store).find(name)
        delete_alias(store, name, alias_name)
    say(f"removed alias {alias_name} of {name}")


@app.command("aliases", epilog="Example: [bold]condconv models aliases b0-8e[/]")
@friendly
def aliases(name: Name, model_store: Store = None, server: ServerOrStore = None, api_key: ApiKey = None) -> None:
    """List a model's aliases."""
    from condconv_serve.client import Client
    from condconv_serve.store import Catalog
    from condconv_serve.store.aliases import read_aliases

    found: dict[str, PointsAt]
    if server is not None:
        with Client(server, api_key=api_key, retries=0) as client:
            found = dict(client.aliases(name))
    else:
        store = read_settings(model_store=model_store).model_store
        Catalog(store).find(name)
        found = dict(read_aliases(store, name))
    for alias_name, target in sorted(found.items()):
        _print_alias(name, alias_name, target)
    if not found:
        say(f"{name} has no aliases")


@app.command("shadows", epilog="Example: [bold]condconv models shadows b0-8e[/]")
@friendly
def shadows(name: Name, as_json: Json = False, server: Server = LOCAL, api_key: ApiKey = None) -> None:
    """Show how versions compare that get copies of requests, since an alias mirrors them."""
    from condconv_serve.client import Client

    with Client(server, api_key=api_key, retries=0) as client:
        found = client.model(name).shadows
    if as_json:
        print_json([{**asdict(one), "since": one.since.isoformat()} for one in found])
        return
    if not found:
        say(f"no version of {name} has got copies of requests")
        return
    columns = ("answers", "copies", "images", "agreement", "distance", "routing distance", "not compared", "since")
    print_listing(columns, [_shadow_row(one) for one in found])
    for one in found:
        if one.problem:
            say(f"version {one.shadow}: {one.problem}", console=err)


@app.command("default", epilog="Example: [bold]condconv models default b0-8e[/]")
@friendly
def default(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The new default model. Default: show the present one.")
    ] = None,
    model_store: Store = None,
) -> None:
    """Show or set the default model, for requests that name none. Servers that use the store follow."""
    from condconv_serve.offline.bundles import default_model
    from condconv_serve.store.default import set_default

    settings = read_settings(model_store=model_store)
    if name is not None:
        set_default(settings.model_store, name)
    found = default_model(settings)
    say(f"the default model is {found.demand()}, since {found.reason}")
    if name not in (None, found.name):
        say(f"The store names {name} now, but a setting goes before it.", console=err)


def _shadow_row(one: ShadowComparison) -> tuple[str, ...]:
    routing = one.routing_distance.values()
    skipped = ", ".join(f"{reason} {count:,}" for reason, count in one.skipped.items())
    return (
        one.version,
        one.shadow,
        f"{one.images:,}",
        "-" if one.agreement is None else f"{one.agreement:.1%}",
        "-" if one.distance is None else f"{one.distance:.4f}",
        f"{sum(routing) / len(routing):.4f}" if routing else "-",
        skipped or "-",
        f"{one.since.astimezone():%Y-%m-%d %H:%M}",
    )


def _split(version: str) -> tuple[str, str]:
    name, slash, number = version.partition("/")
    if not (name and slash and number):
        raise InvalidParameter(f"{version!r} is not a version. Write it like b0-8e/2.")
    return name, number


def _weights(arguments: list[str]) -> dict[str, int]:
    return _numbers(arguments, what="weight", most=1_000_000, usual=1)


def _percentages(arguments: list[str]) -> dict[str, int]:
    return _numbers(arguments, what="percentage", most=100, usual=100)


def _numbers(arguments: list[str], *, what: str, most: int, usual: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for argument in arguments:
        version, equals, number = argument.partition("=")
        if version in found:
            raise InvalidParameter(f"Version {version} is given twice.")
        if equals and not (number.isascii() and number.isdigit() and len(number) < 9):
            raise InvalidParameter(f"The {what} in {argument!r} must be a whole number from 1 to {most}.")
        found[version] = int(number) if equals else usual
    return found


def _print_alias(name: str, alias_name: str, target: PointsAt) -> None:
    total = sum(target.versions.values())
    shares = ", ".join(
        f"{version} ({weight / total:.1%})" if len(target.versions) > 1 else version
        for version, weight in target.versions.items()
    )
    copies = ", ".join(f"{version} ({percent} %)" for version, percent in target.mirror.items())
    say(f"{name}: {alias_name} -> {shares}" + (f"; copies to {copies}" if copies else ""))
