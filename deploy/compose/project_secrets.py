"""Keeps the secrets of the Compose project: the API keys and Grafana's password.

    docker-compose run --rm secrets                       make what is missing
    docker-compose run --rm secrets key NAME [SCOPE]      add an API key (scope: predict or admin)
    docker-compose run --rm -T secrets keys <FILE         take the API keys of a file instead
    docker-compose run --rm -T secrets password <FILE     take Grafana's password of a file; then restart grafana

Only what is made here is printed, once. The service reads its keys anew within a second.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.keys import new_key, parse_keys, read_keys

KEYS = Path("/run/keys/api-keys.json")
PASSWORD = Path("/run/grafana/password")


def replace(path: Path, text: str) -> None:
    """Write a file in one step. Each volume is mounted by its reader only, who has another user id."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o444)
    os.replace(new, path)


def add_key(name: str, scope: str = "predict") -> None:
    """Make an API key, and print its secret."""
    kept = read_keys(KEYS) if KEYS.exists() else ()
    secret, key = new_key(name, scopes=[scope])
    document = json.dumps({"keys": [entry.model_dump(mode="json", exclude_none=True) for entry in (*kept, key)]})
    parse_keys(document)  # refuses a name that is taken
    replace(KEYS, document)
    print(f"API key {name} ({scope}), shown this once: {secret}")


def make_missing() -> None:
    """Make what the first start needs."""
    if not KEYS.exists():
        add_key("operator", "admin")
    if not PASSWORD.exists():
        password = secrets.token_urlsafe(16)
        replace(PASSWORD, password)
        print(f"Grafana: user admin, password {password}")


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    match arguments:
        case []:
            make_missing()
        case ["key", name]:
            add_key(name)
        case ["key", name, scope]:
            add_key(name, scope)
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
