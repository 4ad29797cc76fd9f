"""Commands that make API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from condconv_serve.cli.common import friendly
from condconv_serve.cli.output import err, print_json, say, write

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.command("new", epilog="Example: [bold]condconv keys new --name ci --requests-per-minute 600[/]")
@friendly
def make_key(
    name: Annotated[str, typer.Option(help="Who uses the key. Logs show it. Letters, digits and . _ - are allowed.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="predict, or admin, which includes predict. You can give several. Default: predict."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Most requests in any 60 seconds. Default: no limit.")
    ] = None,
) -> None:
    """Make an API key. Prints the secret (only this once) and the entry for the server's keys file."""
    from condconv_serve.fronts.keys import new_key

    secret, key = new_key(name, scopes=scope or ["predict"], requests_per_minute=requests_per_minute)
    say("The secret. It can't be shown again, so give it to the user now:", console=err)
    write(f"{secret}\n")
    say('The entry to add to "keys" in the keys file:', console=err)
    print_json(key.model_dump(exclude_none=True))
