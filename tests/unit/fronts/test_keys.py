"""API keys: made, stored, found, reloaded."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.errors import ConfigurationError, Unauthenticated
from condconv_serve.fronts import keys
from condconv_serve.fronts.keys import ApiKey, KeyRing, new_key, parse_keys, read_keys
from condconv_serve.fronts.keys_file import add_key
from condconv_serve.key_loading import load_keys
from condconv_serve.settings import Settings

HASH = sha256(b"secret").hexdigest()
OTHER = sha256(b"other").hexdigest()


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "ci", "scopes": ["predict"], "sha256": HASH} | changes


def document(*entries: dict[str, Any]) -> str:
    return json.dumps({"keys": entries})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_new_secret_is_32_random_bytes_and_only_its_hash_is_in_the_entry() -> None:
    secret, key = new_key("ci", scopes=["predict", "admin", "predict"], requests_per_minute=600)
    assert len(base64.urlsafe_b64decode(secret.removeprefix("condconv_") + "=")) == 32
    assert key.sha256 == sha256(secret.encode()).hexdigest()
    assert secret not in key.model_dump_json()
    assert (key.scopes, key.requests_per_minute) == (("predict", "admin"), 600)
    assert new_key("ci")[0] != secret


def test_new_key_fits_into_the_document_and_is_found_by_its_secret() -> None:
    secret, key = new_key("ci")
    ring = KeyRing(parse_keys(document(key.model_dump(exclude_none=True))))
    assert ring.find(secret) == key


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "a b"}, {"name": "a\nb"}, {"name": "a", "scopes": ["root"]}, {"name": "x" * 65}]
)
def test_impossible_new_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="can't be made"):
        new_key(**wrong)


@pytest.mark.parametrize(
    ("scopes", "grants"),
    [
        ([], set()),
        (["predict"], {"predict"}),
        (["admin"], {"predict", "admin"}),
        (["predict", "admin"], {"predict", "admin"}),
    ],
)
def test_grants(scopes: list[str], grants: set[str]) -> None:
    (key,) = parse_keys(document(entry(scopes=scopes)))
    assert key.grants == grants


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "the document"),
        ("{}", "keys: Field required"),
        (document(), "keys: .*at least 1"),
        (document(entry(sha256="swordfish")), r"keys\.0\.sha256"),
        (document(entry(sha256=HASH.upper())), r"keys\.0\.sha256"),
        (document(entry(sha256=HASH + "\n")), r"keys\.0\.sha256"),
        (document(entry(scopes=["swordfish"])), r"keys\.0\.scopes\.0"),
        (document(entry(requests_per_minute=0)), "requests_per_minute"),
        (document(entry(requests_per_minute="many")), "requests_per_minute"),
        (document({"name": "ci", "sha256": HASH}), "scopes: Field required"),
        (document(entry(swordfish="x")), r"keys\.0: Extra"),
        (document(entry(secret="swordfish")), r"keys\.0: Extra"),
        (document(entry(), entry(sha256=OTHER)), "the same name"),
        (document(entry(), entry(name="b")), "the same sha256"),
    ],
)
def test_wrong_documents_are_refused_without_repeating_them(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        parse_keys(text)
    assert "swordfish" not in str(caught.value)


def test_file_that_can_not_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigurationError, match="can't be read"):
            read_keys(path)


@pytest.mark.parametrize("secret", ["", "Secret", "secret ", "sécret", "\udcff", "x" * 100_000, HASH])
def test_unknown_secret(secret: str) -> None:
    ring = KeyRing(parse_keys(document(entry())))
    with pytest.raises(Unauthenticated):
        ring.find(secret)


@pytest.mark.parametrize("secret", ["first", "third", "unknown"])
def test_every_key_is_compared_in_constant_time_wherever_the_right_one_is(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, really = [], hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return really(a, b)

    names = ["first", "second", "third"]
    ring = KeyRing([ApiKey(name=n, scopes=("predict",), sha256=sha256(n.encode()).hexdigest()) for n in names])
    monkeypatch.setattr("hmac.compare_digest", compare)
    if secret in names:
        assert ring.find(secret).name == secret
    else:
        with pytest.raises(Unauthenticated):
            ring.find(secret)
    assert len(compared) == 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(document(entry()))
    return path


def test_changed_file_is_read_anew_within_a_second_but_not_more_often(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ring = KeyRing.from_file(file, clock=clock)
    file.write_text(document(entry(name="new", sha256=OTHER)))
    clock.now += 0.9
    assert ring.find("secret").name == "ci"
    clock.now += 0.2
    with caplog.at_level(logging.INFO), pytest.raises(Unauthenticated):
        ring.find("secret")
    assert ring.find("other").name == "new"
    assert "1 API keys read again: new" in caplog.text


def test_file_is_looked_at_once_a_second_and_read_only_when_changed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    ring = KeyRing.from_file(file, clock=clock)
    looks, stat = [], Path.stat

    def count(self: Path, **options: Any) -> os.stat_result:
        looks.append(self)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", count)
    monkeypatch.setattr(keys, "read_keys", lambda _: pytest.fail("read without a change"))
    for _ in range(30):  # over three seconds
        clock.now += 0.1
        ring.find("secret")
    assert 2 <= len(looks) <= 3


def test_file_replaced_by_another_of_the_same_size_and_time(file: Path, tmp_path: Path) -> None:
    clock = Clock()
    ring = KeyRing.from_file(file, clock=clock)
    status, other = file.stat(), tmp_path / "other.json"
    other.write_text(document(entry(sha256=OTHER)))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert file.stat().st_size == status.st_size
    clock.now += 2
    assert ring.find("other").name == "ci"


@pytest.mark.parametrize("broken", ["{", document(), document(entry(sha256="x")), None])
def test_broken_file_leaves_the_old_keys_in_force_and_is_logged_once(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ring = KeyRing.from_file(file, clock=clock)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    for _ in range(3):
        clock.now += 2
        assert ring.find("secret").name == "ci"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the 1 old ones stay in force" in caplog.text
    file.write_text(document(entry(), entry(name="more", sha256=OTHER)))
    clock.now += 2
    assert ring.find("other").name == "more"
    assert len(ring) == 2


def test_file_that_is_broken_from_the_start(file: Path) -> None:
    file.write_text("{")
    with pytest.raises(ConfigurationError):
        KeyRing.from_file(file)


@pytest.fixture
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)


@pytest.mark.usefixtures("_no_settings_from_outside")
class TestSettings:
    def test_no_keys(self) -> None:
        assert load_keys(Settings()) is None

    def test_keys_of_a_file(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONDCONV_API_KEYS_FILE", str(file))
        ring = load_keys(Settings())
        assert ring is not None
        assert ring.find("secret").name == "ci"

    def test_keys_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONDCONV_API_KEYS", document(entry(name="env")))
        settings = Settings()
        ring = load_keys(settings)
        assert ring is not None
        assert ring.find("secret").name == "env"
        assert HASH not in repr(settings)

    @pytest.mark.parametrize("name", ["API_KEYS", "API_KEYS_FILE"])
    def test_set_to_nothing_is_not_the_same_as_unset(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(f"CONDCONV_{name}", "")
        with pytest.raises(ConfigurationError):
            load_keys(Settings())

    def test_both(self, file: Path) -> None:
        with pytest.raises(ConfigurationError, match="not both"):
            load_keys(Settings(api_keys_file=file, api_keys=document(entry())))


class TestCommand:
    def test_new_key_prints_a_secret_and_the_entry_that_goes_with_it(self) -> None:
        command = ["keys", "new", "--name", "ci", "--scope", "predict", "--scope", "admin"]
        result = CliRunner().invoke(app, [*command, "--requests-per-minute", "60"])
        assert result.exit_code == 0
        secret, _, stored = result.stdout.partition("\n")
        assert json.loads(stored) == {
            "name": "ci",
            "scopes": ["predict", "admin"],
            "sha256": sha256(secret.encode()).hexdigest(),
            "requests_per_minute": 60,
        }
        assert "can't be shown again" in result.stderr
        assert secret not in result.stderr

    def test_new_key_may_predict_without_limit_unless_told_otherwise(self) -> None:
        result = CliRunner().invoke(app, ["keys", "new", "--name", "ci"])
        stored = json.loads(result.stdout.partition("\n")[2])
        assert (stored["scopes"], "requests_per_minute" in stored) == (["predict"], False)

    def test_a_key_is_added_to_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.json"
        first = CliRunner().invoke(app, ["keys", "new", "--name", "first", "--add-to", str(file)])
        assert first.exit_code == 0, first.stderr
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert f"Start the server with CONDCONV_API_KEYS_FILE={file}." in first.stderr
        clock = Clock()
        ring = KeyRing.from_file(file, clock=clock)
        assert ring.find(first.stdout.strip()).name == "first", "stdout is the secret and nothing else"
        file.chmod(0o640)
        second = CliRunner().invoke(app, ["keys", "new", "--name", "second", "--scope", "admin", "--add-to", str(file)])
        assert "SIGHUP" in second.stderr
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        clock.now += 2
        assert ring.find(second.stdout.strip()).scopes == ("admin",)
        assert [key.name for key in ring] == ["first", "second"]
        assert first.stdout.strip() not in file.read_text()

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real.json").write_text(document(entry()))
        (tmp_path / "link.json").symlink_to("real.json")
        CliRunner().invoke(app, ["keys", "new", "--name", "new", "--add-to", str(tmp_path / "link.json")])
        assert (tmp_path / "link.json").is_symlink()
        assert [key.name for key in read_keys(tmp_path / "real.json")] == ["ci", "new"]

    @pytest.mark.parametrize("text", ["", "\n", '{"keys": []}'])
    def test_a_file_without_keys_yet(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "keys.json").write_text(text)
        result = CliRunner().invoke(app, ["keys", "new", "--name", "ci", "--add-to", str(tmp_path / "keys.json")])
        assert result.exit_code == 0
        assert [key.name for key in read_keys(tmp_path / "keys.json")] == ["ci"]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (document(entry()), "has a key named 'ci' already. Choose another name"),
            ("{", "is no keys file, so no key can be added to it: The API keys are not valid JSON."),
            ('{"other": 1}', "is no keys file"),
            (document(entry(name="other", sha256="secret")), "is no keys file"),
        ],
    )
    def test_files_that_take_no_key(self, text: str, says: str, tmp_path: Path) -> None:
        (tmp_path / "keys.json").write_text(text)
        result = CliRunner().invoke(app, ["keys", "new", "--name", "ci", "--add-to", str(tmp_path / "keys.json")])
        assert (result.exit_code, result.stdout) == (1, "")
        assert says in result.stderr
        assert (tmp_path / "keys.json").read_text() == text

    @pytest.mark.parametrize(
        ("place", "says"), [("absent/keys.json", "there is no directory"), (".", "is no ordinary file")]
    )
    def test_places_that_take_no_key(self, place: str, says: str, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["keys", "new", "--name", "ci", "--add-to", str(tmp_path / place)])
        assert (result.exit_code, result.stdout) == (1, "")
        assert says in result.stderr

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_somebody_elses_file_stays_theirs(self, tmp_path: Path) -> None:
        (tmp_path / "keys.json").write_text(document(entry()))
        os.chown(tmp_path / "keys.json", 1234, 5678)
        add_key(tmp_path / "keys.json", new_key("new")[1])
        status = (tmp_path / "keys.json").stat()
        assert (status.st_uid, status.st_gid) == (1234, 5678)

    def test_many_at_once(self, tmp_path: Path) -> None:
        names = [f"key-{number}" for number in range(20)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: add_key(tmp_path / "keys.json", new_key(name)[1]), names))
        assert sorted(key.name for key in read_keys(tmp_path / "keys.json")) == sorted(names)

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (["--name", "a b"], 1),
            (["--name", "a", "--scope", "root"], 1),
            (["--name", "a", "--requests-per-minute", "0"], 2),
            ([], 2),
        ],
    )
    def test_impossible_keys(self, arguments: list[str], code: int) -> None:
        result = CliRunner().invoke(app, ["keys", "new", *arguments])
        assert result.exit_code == code
        assert result.stdout == ""
        assert result.stderr
