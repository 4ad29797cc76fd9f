"""The commands that change which versions serve, on a server and on its store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from condconv_serve.cli import app
from condconv_serve.store.aliases import read_aliases
from tests import pictures
from tests.e2e.server import Server, wait_for
from tests.e2e.tiny_models import answered_by, write_fake

SECRETS = {"admin": "secret-of-admin", "user": "secret-of-user"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for version in (1, 2):
        write_fake(store, "tiny", version)
    return store


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    keys = [
        {
            "name": name,
            "scopes": ["admin" if name == "admin" else "predict"],
            "sha256": sha256(secret.encode()).hexdigest(),
        }
        for name, secret in SECRETS.items()
    ]
    with Server(model_store=store, api_keys=json.dumps({"keys": keys})) as running:
        running.client.headers["X-API-Key"] = SECRETS["user"]
        yield running


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments], env=variables)


def test_on_a_server(server: Server, store: Path) -> None:
    asked = {"CONDCONV_URL": server.url, "CONDCONV_API_KEY": SECRETS["admin"]}
    photo = pictures.jpeg(pictures.photo("coffee", (60, 40)))

    def answering(version: str) -> str:
        # With workers, the command and this may ask different fronts, which hear of versions one after the other.
        path = f"/predict?version={version}"
        wait_for(lambda: server.client.post(path, content=photo).status_code == 200)
        return answered_by(server.client.post(path, content=photo))

    assert run("load", "tiny/1", **asked).output == "tiny/1 is serving\n"
    assert answering("1") == "1"
    assert run("alias", "tiny", "stable", "1=3", "2=1", **asked).output == "tiny: stable -> 1 (75.0%), 2 (25.0%)\n"
    mirrored = "tiny: stable -> 1; copies to 2 (10 %)\n"
    assert run("alias", "tiny", "stable", "1", "--mirror", "2=10", **asked).output == mirrored
    assert run("aliases", "tiny", **asked).output == mirrored
    assert run("alias", "tiny", "stable", "1", **asked).output == "tiny: stable -> 1\n"
    assert run("shadows", "tiny", **asked).output == "no version of tiny has got copies of requests\n"
    assert answering("stable") == "1"
    assert run("aliases", "tiny", **asked).output == "tiny: stable -> 1\n"
    assert run("rollback", "tiny", "stable", **asked).output == "tiny: stable -> 1 (75.0%), 2 (25.0%)\n"
    refused = run("unload", "tiny/1", **asked)
    assert (refused.exit_code, "Version 1 of tiny is what stable points at." in refused.output) == (1, True)
    assert run("unalias", "tiny", "stable", **asked).output == "removed alias stable of tiny\n"
    assert run("unload", "tiny/1", **asked).exit_code == 0
    assert run("aliases", "tiny", **asked).output == "tiny has no aliases\n"
    assert read_aliases(store, "tiny") == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("load", "tiny/7"), "Model tiny has no version '7'"),
        (("load", "tiny"), "is not a version"),
        (("alias", "tiny", "stable", "1=x"), "must be a whole number"),
        (("alias", "tiny", "stable", "1", "1"), "given twice"),
        (("alias", "tiny", "stable", "1", "--mirror", "2=x"), "The percentage in '2=x' must be a whole number"),
        (("alias", "tiny", "stable", "1", "--mirror", "2=0"), "percentages from 1 to 100"),
        (("alias", "tiny", "stable", "1", "--mirror", "1"), "mirrored to itself"),
        (("alias", "tiny", "stable", "1", "--mirror", "7"), "Model tiny has no version '7'"),
        (("alias", "tiny", "Stable", "1"), "An alias can't be called 'Stable'"),
        (("rollback", "tiny", "nothing"), "has no alias 'nothing'"),
        (("unalias", "../tiny", "stable"), "There is nothing at"),
    ],
)
def test_what_a_server_refuses(arguments: tuple[str, ...], says: str, server: Server) -> None:
    result = run(*arguments, CONDCONV_URL=server.url, CONDCONV_API_KEY=SECRETS["admin"])
    assert result.exit_code == 1
    assert says in result.output


def test_who_may_not(server: Server) -> None:
    assert "scope admin" in run("load", "tiny/1", CONDCONV_URL=server.url, CONDCONV_API_KEY=SECRETS["user"]).output
    assert "API key is needed" in run("load", "tiny/1", CONDCONV_URL=server.url, CONDCONV_API_KEY="").output
    nobody = run("load", "tiny/1", "--server", "http://127.0.0.1:9")
    assert (nobody.exit_code, "can't be reached" in nobody.output) == (1, True)


def test_in_the_store(server: Server, store: Path) -> None:
    """Without an address the store is changed, and a running server follows."""
    given = {"CONDCONV_MODEL_STORE": str(store)}
    assert run("alias", "tiny", "canary", "1", **given).output == "tiny: canary -> 1\n"
    photo = pictures.jpeg(pictures.photo("coffee", (60, 40)))
    wait_for(lambda: server.client.post("/predict?version=canary", content=photo).status_code == 200)
    assert answered_by(server.client.post("/predict?version=canary", content=photo)) == "1"
    assert run("alias", "tiny", "canary", "2", **given).output == "tiny: canary -> 2\n"
    assert run("rollback", "tiny", "canary", **given).output == "tiny: canary -> 1\n"
    assert run("aliases", "tiny", **given).output == "tiny: canary -> 1\n"
    for arguments in (("alias", "tiny", "canary", "9"), ("alias", "none", "canary", "1"), ("unalias", "tiny", "x")):
        assert run(*arguments, **given).exit_code == 1
    assert run("unalias", "tiny", "canary", **given).exit_code == 0
    wait_for(lambda: server.client.post("/predict?version=canary", content=photo).status_code == 404)


def test_the_default_model(server: Server, store: Path) -> None:
    """A model that comes later and sorts first changes nothing; a new default is followed at once."""
    given = {"CONDCONV_MODEL_STORE": str(store)}
    photo = pictures.jpeg(pictures.photo("coffee", (60, 40)))

    def answering() -> str:
        return str(server.client.post("/predict", content=photo).json()["model"]["name"])

    write_fake(store, "another", 1)
    shown = run("default", **given)
    assert (shown.exit_code, shown.output.split(", ")[0]) == (0, "the default model is tiny")
    wait_for(lambda: server.client.post("/predict?model=another", content=photo).status_code == 200)
    assert answering() == "tiny"
    refused = run("default", "none", **given)
    assert (refused.exit_code, "there are: another, tiny." in refused.output) == (1, True)
    assert run("default", "another", **given).output.startswith("the default model is another, since")
    wait_for(lambda: answering() == "another")
    (chosen,) = [model for model in server.client.get("/models").json()["models"] if model["default"]]
    assert chosen["name"] == "another"
    # Both are told after it has changed.
    wait_for(
        lambda: "the default model is another, since default.json in the model store says so; it was tiny" in server.log
    )
    wait_for(lambda: 'condconv_default_model{model="another"} 1.0' in server.client.get("/metrics").text)
    overruled = run("default", "tiny", **given, CONDCONV_DEFAULT_MODEL="another")
    assert "the default model is another, since CONDCONV_DEFAULT_MODEL says so" in overruled.output
    assert "The store names tiny now, but a setting goes before it." in overruled.output
    wait_for(lambda: answering() == "tiny")
    (store / "default.json").unlink()
    unset = run("default", **given)
    assert (unset.exit_code, "condconv models default NAME" in unset.output) == (1, True)
    assert run("default", "tiny", **given).exit_code == 0
