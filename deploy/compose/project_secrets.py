"""Keeps the secrets of the Compose project: the API keys and Grafana's password.

    docker-compose run --rm secrets                       make what is missing
    docker-compose run --rm secrets show                  print what was made: the first API key once, then no more
    docker-compose run --rm secrets key NAME [SCOPE]      add an API key (scope: predict or admin)
    docker-compose run --rm -T secrets keys <FILE         take the API keys of a file instead
    docker-compose run --rm -T secrets password <FILE     take Grafana's password of a file; then restart grafana

Nothing is printed unless you ask, and no log keeps it. The service reads its keys anew within a second.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.keys import new_key, parse_keys, read_keys, write_keys

KEYS = Path("/run/keys/api-keys.json")
PASSWORD = Path("/run/grafana/password")
FIRST = Path("/run/first-key/secret")
"""The first API key, until somebody has seen it. Only the container of this program mounts it."""


def replace(path: Path, text: str, *, mode: int = 0o444) -> None:
    """Write a file in one step. Each volume is mounted by its reader only, who has another user id."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.chmod(mode)
    os.replace(new, path)


def add_key(name: str, scope: str = "predict") -> str:
    """Make an API key; its secret, of which only the hash is kept."""
    kept = read_keys(KEYS) if KEYS.exists() else ()
    secret, key = new_key(name, scopes=[scope])
    document = write_keys((*kept, key))
    parse_keys(document)  # refuses a name that is taken
    replace(KEYS, document)
    return secret


def make_missing() -> None:
    """Make what the first start needs."""
    made = False
    if not KEYS.exists():
        replace(FIRST, add_key("operator", "admin"), mode=0o400)
        made = True
    if not PASSWORD.exists():
        replace(PASSWORD, secrets.token_urlsafe(16))
        made = True
    if made:
        print("Made what was missing. To see it: docker-compose run --rm secrets show")


def show() -> None:
    """Print the first API key, unless somebody has seen it, and Grafana's password."""
    make_missing()
    if FIRST.exists():
        print(f"API key operator (admin), shown this once: {FIRST.read_text()}")
        FIRST.unlink()
    else:
        print("The first API key has been shown. For another one: docker-compose run --rm secrets key NAME admin")
    print(f"Grafana: user admin, password {PASSWORD.read_text()}")


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    match arguments:
        case []:
            make_missing()
        case ["show"]:
            show()
        case ["key", name]:
            print(f"API key {name} (predict), shown this once: {add_key(name)}")
        case ["key", name, scope]:
            print(f"API key {name} ({scope}), shown this once: {add_key(name, scope)}")
        case ["keys"]:
            text = sys.stdin.read()
            print(f"{len(parse_keys(text))} API keys taken")
            replace(KEYS, text)
        case ["password"]:
            password = sys.stdin.read().strip()
            if len(password) < 8:
                raise ConfigurationError("The password needs 8 characters at least.")
            replace(PASSWORD, password)
        case _:
            raise ConfigurationError((__doc__ or "").partition("\n\n")[2])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigurationError as error:
        sys.exit(str(error))
