"""The secrets of the Compose project are made once, and shown only to who asks."""

from __future__ import annotations

import importlib.util
import re
import stat
from pathlib import Path
from types import ModuleType

import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.keys import read_keys
from tests.deploy.commands import ROOT

KEY = re.compile(r"condconv_[\w-]{43}")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_secrets", ROOT / "deploy/compose/project_secrets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, file in (("KEYS", "keys/api-keys.json"), ("PASSWORD", "grafana/password"), ("FIRST", "first/secret")):
        (tmp_path / file).parent.mkdir()
        monkeypatch.setattr(module, name, tmp_path / file)
    return module


def test_what_is_made_at_the_first_start_is_not_printed(program, capsys):
    program.main([])
    printed = capsys.readouterr().out
    assert "secrets show" in printed
    secret, password = program.FIRST.read_text(), program.PASSWORD.read_text()
    assert secret not in printed
    assert password not in printed
    assert KEY.fullmatch(secret)
    assert secret not in program.KEYS.read_text()
    assert [(key.name, sorted(key.scopes)) for key in read_keys(program.KEYS)] == [("operator", ["admin"])]
    # The reader of a volume has another user id; nobody else reads the key.
    assert stat.S_IMODE(program.KEYS.stat().st_mode) == stat.S_IMODE(program.PASSWORD.stat().st_mode) == 0o444
    assert stat.S_IMODE(program.FIRST.stat().st_mode) == 0o400
    # The next start makes nothing and has nothing to say.
    before = program.KEYS.read_bytes(), program.PASSWORD.read_bytes(), program.FIRST.read_bytes()
    program.main([])
    assert capsys.readouterr().out == ""
    assert (program.KEYS.read_bytes(), program.PASSWORD.read_bytes(), program.FIRST.read_bytes()) == before


def test_the_first_key_is_shown_once(program, capsys):
    program.main([])
    secret, password = program.FIRST.read_text(), program.PASSWORD.read_text()
    capsys.readouterr()
    program.main(["show"])
    printed = capsys.readouterr().out
    assert secret in printed
    assert password in printed
    assert not program.FIRST.exists()
    program.main(["show"])
    printed = capsys.readouterr().out
    assert KEY.search(printed) is None
    assert password in printed
    assert "secrets key NAME admin" in printed


def test_show_makes_what_is_missing(program, capsys):
    program.main(["show"])
    assert KEY.search(capsys.readouterr().out)


def test_keys_are_added_and_shown_at_once(program, capsys):
    program.main([])
    program.main(["key", "ci"])
    program.main(["key", "boss", "admin"])
    assert len(set(KEY.findall(capsys.readouterr().out))) == 2
    assert {key.name: sorted(key.scopes) for key in read_keys(program.KEYS)} == {
        "operator": ["admin"],
        "ci": ["predict"],
        "boss": ["admin"],
    }
    with pytest.raises(ConfigurationError, match="same name"):
        program.main(["key", "ci"])


def test_an_unknown_command_is_answered_with_those_there_are(program):
    with pytest.raises(ConfigurationError, match="secrets show"):
        program.main(["shwo"])
