"""Commands that make API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condconv_serve.cli.common import friendly
from condconv_serve.cli.output import note, print_json, write

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.command("new", epilog="Example: [bold]condconv keys new --name ci --requests-per-minute 600 --add-to keys.json[/]")
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
    add_to: Annotated[
        Path | None,
        typer.Option("--add-to", metavar="FILE", help="Keys file to add the entry to; made if there is none."),
    ] = None,
) -> None:
    """Make an API key. Prints the secret (only this once), and the entry unless it is added to a file."""
    from condconv_serve.fronts.keys import new_key
    from condconv_serve.fronts.keys_file import add_key

    secret, key = new_key(name, scopes=scope or ["predict"], requests_per_minute=requests_per_minute)
    is_new = add_key(add_to, key) if add_to is not None else False
    note("The secret. It can't be shown again, so give it to the user now:")
    write(f"{secret}\n")
    if add_to is None:
        note('The entry to add to "keys" in the keys file:')
        print_json(key.model_dump(exclude_none=True))
    elif is_new:
        note(f"Its entry is the first in {add_to}. Start the server with CONDCONV_API_KEYS_FILE={add_to}.")
    else:
        note(
            f"Its entry was added to {add_to}. A server that uses this file looks at it with the next request that "
            "has a key, and at once on SIGHUP."
        )
