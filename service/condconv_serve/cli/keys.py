"""Commands that make API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from condconv_serve.cli.common import friendly
from condconv_serve.cli.output import err, print_json, say

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.command("new", epilog="Example: [bold]condconv keys new --name ci --requests-per-minute 600[/]")
@friendly
def make_key(
    name: Annotated[str, typer.Option(help="Who uses it; letters, digits, and . _ - between them. Logs show it.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it is for, repeatable: predict or admin, which implies predict; predict if absent."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Most requests in any 60 seconds; no limit if absent.")
    ] = None,
) -> None:
    """Make an API key: the secret, shown this once, and the entry to store for the server."""
    from condconv_serve.fronts.keys import new_key

    secret, key = new_key(name, scopes=scope or ["predict"], requests_per_minute=requests_per_minute)
    say("The secret, which can't be shown again; give it to whoever is to use the service:", console=err)
    print(secret, flush=True)
    say('The entry to add to "keys" in the keys file:', console=err)
    print_json(key.model_dump(exclude_none=True))
