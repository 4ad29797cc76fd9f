"""`condconv models pull`: what users see, and what is left when a process of its own is interrupted."""

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.store import Catalog, open_bundle
from condconv_serve.store.pull.download import Silence
from condconv_serve.store.pull.published import Checkpoint
from condconv_serve.store.pull.pulling import PullRequest, pull
from tests.unit.store.pull import file_server as misbehave
from tests.unit.store.pull.conftest import NAME, packed, shallow_tensors, tiny_entry, write_catalogue
from tests.unit.store.pull.file_server import ProxyServer

pytestmark = pytest.mark.tensorflow

PATH = f"/storage/{NAME}.tar.gz"


@pytest.fixture
def url(server, archive):
    return server.add(PATH, archive)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "store", tmp_path / "cache"


@pytest.fixture
def command(place, url, tmp_path):
    """The command and its environment; the catalogue has the narrow network."""
    store, cache = place
    write_catalogue(tmp_path / "own.json", tiny_entry(url))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TF_", "CONDCONV_"))}
    return {
        "args": [
            sys.executable,
            "-m",
            "condconv_serve",
            "models",
            "pull",
            NAME,
            "--catalogue",
            str(tmp_path / "own.json"),
        ],
        "env": {**kept, "CONDCONV_MODEL_STORE": str(store), "CONDCONV_CACHE_DIR": str(cache)},
    }


def run(command, *arguments, **environment):
    return subprocess.run(
        [*command["args"], *map(str, arguments)],
        env=command["env"] | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_bundle_is_made(command, place, server, archive, monkeypatch):
    monkeypatch.setenv("CONDCONV_CACHE_DIR", str(place[1]))
    code, out, err = condconv(*command["args"][3:], "--model-store", place[0])
    assert code == 0, err
    path = place[0] / NAME / "1"
    assert out == f"wrote {path}\n"
    size = f"{len(archive) / 1e6:.1f} MB"
    lines = err.splitlines()
    assert lines[0] == f"0.0 of {size}"
    assert lines[-1] == f"{size[:-3]} of {size}"
    assert len(lines) <= 11
    assert open_bundle(path).manifest.provenance.url == server.url(PATH)


def condconv(*arguments):
    """Run the command here; returns exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def until_half(place, half):
    """Wait until the process has received that much."""
    deadline = time.monotonic() + 60
    while [p.stat().st_size for p in place[1].rglob("*.part")] != [half] and time.monotonic() < deadline:
        time.sleep(0.02)


def test_interrupted(command, place, server, archive, monkeypatch):
    half = len(archive) // 2
    server.files[PATH].behaviours = [misbehave.stalled_after(half)]
    process = subprocess.Popen(command["args"], env=command["env"], text=True, stderr=subprocess.PIPE)
    until_half(place, half)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted: no bundle was written. What was received is kept")
    assert "Traceback" not in said
    assert not place[0].exists() or list(Catalog(place[0])) == []
    assert [path.stat().st_size for path in place[1].rglob("*.part")] == [half]
    monkeypatch.setenv("CONDCONV_CACHE_DIR", str(place[1]))
    assert condconv(*command["args"][3:], "--model-store", place[0])[0] == 0
    assert [seen.headers.get("range") for seen in server.seen] == [None, f"bytes={half}-"]
    open_bundle(place[0] / NAME / "1")


def test_killed_while_another_one_waits(command, place, url, server, archive):
    """The other one goes on where the first one was stopped."""
    half = len(archive) // 2
    server.files[PATH].behaviours = [misbehave.stalled_after(half)]
    process = subprocess.Popen(command["args"], env=command["env"])
    until_half(place, half)
    notes = []

    class Killer(Silence):
        def note(self, text):
            notes.append(text)
            process.kill()
            process.wait(30)

    checkpoint = Checkpoint.model_validate_json(json.dumps(tiny_entry(url)))
    request = PullRequest(checkpoint=checkpoint, name=NAME, version="1", cache=place[1])
    pull(request, store=place[0], reporter=Killer())
    assert notes == ["Another process is pulling this checkpoint; waiting for it."]
    assert [seen.headers.get("range") for seen in server.seen] == [None, f"bytes={half}-"]
    assert list(Catalog(place[0])) == [place[0] / NAME / "1"]
    open_bundle(place[0] / NAME / "1")


def test_on_a_terminal_through_a_proxy_from_a_mirror(command, place, server, archive, tmp_path, monkeypatch, capsys):
    write_catalogue(tmp_path / "own.json", tiny_entry(f"https://storage.invalid{PATH}"))
    mirrored = server.add(f"/mirror{PATH}", archive, misbehave.announcing(len(archive) + 1))
    ours, theirs = pty.openpty()
    with ProxyServer() as proxy:
        environment = {"HTTP_PROXY": proxy.url(""), "http_proxy": proxy.url(""), "TERM": "xterm", "COLUMNS": "120"}
        environment |= {"CONDCONV_MIRROR": server.url("/mirror/"), "CONDCONV_CACHE_DIR": str(place[1])}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        shown = bytearray()

        def read():
            with contextlib.suppress(OSError):  # the other side is closed
                while chunk := os.read(ours, 4096):
                    shown.extend(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        with open(theirs, "w") as terminal, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            arguments = [*command["args"][3:], "--name", "mine", "--version", "7", "--model-store", str(place[0])]
            app(arguments, standalone_mode=False)
        reader.join(10)
        os.close(ours)
        assert {seen.path for seen in proxy.seen} == {mirrored}
    assert capsys.readouterr().out == f"wrote {place[0] / 'mine' / '7'}\n"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━━━" in text
    assert f"{len(archive) / 1e6:.1f}/{len(archive) / 1e6:.1f} MB" in text
    assert "Trying again in " in text


def test_from_the_hub(command, place, server, tmp_path):
    """The library reads HF_ENDPOINT; the bundle says which repository it was."""
    content = save({name: np.ascontiguousarray(value) for name, value in shallow_tensors().items()})
    sha256 = hashlib.sha256(content).hexdigest()
    server.add(
        "/timm/narrow.in1k/resolve/main/model.safetensors",
        content,
        etag=f'"{sha256}"',
        headers={"X-Repo-Commit": "0" * 40},
    )
    source = {"kind": "hub", "repository": "timm/narrow.in1k"}
    write_catalogue(tmp_path / "own.json", tiny_entry("", source=source))
    result = run(command, HF_ENDPOINT=server.url(""), HF_HUB_DISABLE_TELEMETRY="1")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "no bars where nobody sees them"
    provenance = open_bundle(place[0] / NAME / "1").manifest.provenance
    assert (provenance.url, provenance.source_sha256) == ("https://huggingface.co/timm/narrow.in1k", sha256)
    (key,) = json.loads((place[0] / "checksums.json").read_text())["files"]
    assert key == "hub:timm/narrow.in1k@main/model.safetensors"


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (misbehave.status(404), "status 404: there is no such file"),
        (misbehave.replaced_by(packed({"../evil.index": b"x"}), None), "may lead out of the directory"),
        (misbehave.announcing(2**45), "; the most allowed is 2147483648."),
    ],
    ids=["no file", "hostile archive", "too large"],
)
def test_failures_are_one_line(behaviour, says, command, place, server, monkeypatch):
    server.files[PATH].behaviours = [behaviour]
    monkeypatch.setenv("CONDCONV_CACHE_DIR", str(place[1]))
    code, out, err = condconv(*command["args"][3:], "--model-store", place[0])
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert not place[0].exists() or list(Catalog(place[0])) == []


class TestWithoutDownloading:
    def test_the_catalogue(self):
        code, out, err = condconv("models", "catalogue")
        assert (code, err) == (0, "")
        header, *rows = out.splitlines()
        assert header.split() == ["name", "architecture", "published", "top-1", "licence", "size", "from"]
        assert len(rows) == 6
        name, architecture, top1, licence, size, page = rows[1].split()
        assert name == architecture == "efficientnet-condconv-b0-8e"
        assert (top1, licence, size) == ("78.3%", "Apache-2.0", "unknown")
        assert page.endswith("/efficientnet-condconv-b0-8e.tar.gz")

    def test_the_catalogue_as_json(self, tmp_path):
        file = write_catalogue(tmp_path / "own.json", tiny_entry("https://example.org/w.tar", size=2_500_000))
        code, out, _ = condconv("models", "catalogue", "--json", "--catalogue", file)
        assert code == 0
        (entry,) = json.loads(out)["checkpoints"]
        assert (entry["name"], entry["size"]) == (NAME, 2_500_000)
        assert "sha256" not in entry
        assert "2.5 MB" in condconv("models", "catalogue", "--catalogue", file)[1]

    def test_a_catalogue_that_would_steer_the_terminal(self, tmp_path):
        file = write_catalogue(
            tmp_path / "own.json", tiny_entry("https://example.org/w.tar", licence="\x1b[2J[red]MIT")
        )
        out = condconv("models", "catalogue", "--catalogue", file)[1]
        assert r"\x1b[2J[red]MIT" in out
        assert "\x1b" not in out

    def test_a_catalogue_from_the_environment(self, tmp_path, monkeypatch):
        file = write_catalogue(tmp_path / "own.json", schema_version=9)
        monkeypatch.setenv("CONDCONV_CATALOGUE", str(file))
        for arguments in (["catalogue"], ["pull", NAME]):
            code, out, err = condconv("models", *arguments)
            assert (code, out) == (1, "")
            assert err == "error: own.json has schema version 9, newer than 1, the newest one known here.\n"

    def test_an_unknown_name(self):
        code, out, err = condconv("models", "pull", "[bold]resnet")
        assert (code, out) == (1, "")
        assert err.startswith("error: The catalogue has no checkpoint '[bold]resnet'; it has: ")

    @pytest.mark.parametrize("mirror", ["ftp://example.org", "example.org", "http://a b", "http://[x"])
    def test_an_impossible_mirror(self, mirror, monkeypatch):
        monkeypatch.setenv("CONDCONV_MIRROR", mirror)
        code, _, err = condconv("models", "pull", NAME)
        assert code == 2
        assert err.startswith("error: CONDCONV_MIRROR: ")
