"""`condconv models pull`: what users see, and what is left when a process of its own is interrupted."""

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.runtime import tensorflow_import
from condconv_serve.store import Catalog, open_bundle
from condconv_serve.store.pull.download import Silence
from condconv_serve.store.pull.published import Checkpoint
from condconv_serve.store.pull.pulling import PullRequest, pull
from tests.unit.store.pull import file_server as misbehave
from tests.unit.store.pull.conftest import NAME, packed, shallow_tensors, tiny_entry, write_catalogue
from tests.unit.store.pull.file_server import ProxyServer

pytestmark = pytest.mark.tensorflow

PATH = f"/storage/{NAME}.tar.gz"
WITHOUT_TENSORFLOW = """
import sys, types
from condconv_serve.__main__ import main
from condconv_serve.runtime import tensorflow_import

tensorflow_import.import_tensorflow = lambda: None
sys.modules["condconv_serve.nn"] = types.SimpleNamespace(get_architecture=lambda name, **_: name)
main()
"""
"""For processes that end before they have what they could compute with."""


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
        "env": {**kept, "CONDCONV_MODEL_STORE": str(store), "CONDCONV_CACHE_DIR": str(cache)}
        | {"CONDCONV_CONNECT_TIMEOUT": "60"},
    }


def run(command, *arguments, **environment):
    return subprocess.run(
        [*command["args"], *map(str, arguments)],
        env=command["env"] | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def start(command, **options):
    """A process that pulls, to be ended before it has all."""
    arguments = [sys.executable, "-c", WITHOUT_TENSORFLOW, *command["args"][3:]]
    return subprocess.Popen(arguments, env=command["env"], text=True, **options)


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
    deadline = time.monotonic() + 120
    while [p.stat().st_size for p in place[1].rglob("*.part")] != [half] and time.monotonic() < deadline:
        time.sleep(0.02)


def test_interrupted(command, place, server, archive, monkeypatch):
    half = len(archive) // 2
    server.files[PATH].behaviours = [misbehave.stalled_after(half)]
    process = start(command, stderr=subprocess.PIPE)
    until_half(place, half)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
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
    process = start(command)
    until_half(place, half)
    notes = []

    class Killer(Silence):
        def note(self, text):
            notes.append(text)
            process.kill()
            process.wait(60)

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
        reader.join(60)
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


class TestWithoutANetwork:
    """TensorFlow's import would take longer than all else, so nothing must ask for it."""

    @pytest.fixture(autouse=True)
    def _no_tensorflow(self, monkeypatch, place):
        def fail():
            raise AssertionError("TensorFlow was imported, though there is no file yet")

        monkeypatch.setattr(tensorflow_import, "import_tensorflow", fail)
        monkeypatch.setenv("CONDCONV_CACHE_DIR", str(place[1]))
        monkeypatch.setenv("CONDCONV_MODEL_STORE", str(place[0]))

    def test_what_can_be_done(self, nobody, monkeypatch):
        monkeypatch.setenv("CONDCONV_MIRROR", f"http://{nobody}")
        code, out, err = condconv("models", "pull", "efficientnet-condconv-b0-8e")
        assert (code, out) == (1, "")
        failure, *advice = err.splitlines()
        assert failure == "error: 127.0.0.1 can't be reached: connection refused."
        url = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet/condconv/efficientnet-condconv-b0-8e"
        assert advice == [
            "What you can do:",
            "- Behind a proxy: set HTTPS_PROXY to its address, such as http://proxy.example.org:3128.",
            f"- CONDCONV_MIRROR is http://{nobody}: correct it.",
            f"- Without a network: download {url}.tar.gz elsewhere, bring it here, and run",
            "  condconv models pull efficientnet-condconv-b0-8e --file efficientnet-condconv-b0-8e.tar.gz",
        ]

    def test_the_time_for_a_connection_is_a_setting(self, monkeypatch):
        released = threading.Event()

        def hang(*_, **__):
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "too late")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        monkeypatch.setenv("CONDCONV_CONNECT_TIMEOUT", "0.2")
        code, _, err = condconv("models", "pull", "efficientnet-condconv-b0-8e")
        released.set()
        assert code == 1
        assert err.startswith("error: storage.googleapis.com can't be reached: no connection in 0.2 seconds.\n")

    def test_a_wrong_proxy(self, nobody, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{nobody}")
        code, _, err = condconv("models", "pull", "efficientnet-condconv-b0-8e")
        assert code == 1
        assert f"The proxy {nobody} can't be used to reach storage.googleapis.com: connection refused." in err
        assert "- The proxy comes from HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: correct it." in err
        assert "- With a mirror that you can reach: set CONDCONV_MIRROR to its address." in err

    def test_the_file_is_not_there(self, server, monkeypatch):
        monkeypatch.setenv("CONDCONV_MIRROR", server.url(""))
        code, _, err = condconv("models", "pull", "efficientnet-condconv-b0-8e")
        assert code == 1
        assert "status 404: there is no such file." in err

    def test_a_catalogue_that_cannot_be_fetched(self, nobody):
        code, out, err = condconv("models", "catalogue", "--catalogue", f"http://{nobody}/catalogue.json")
        assert (code, out, err) == (1, "", "error: 127.0.0.1 can't be reached: connection refused.\n")


class TestAFileThatIsThere:
    def test_it_becomes_the_bundle_of_the_catalogue(self, command, place, url, server, archive, tmp_path):
        (tmp_path / "brought.tar.gz").write_bytes(archive)
        given = ["--file", tmp_path / "brought.tar.gz", "--model-store", place[0]]
        assert condconv(*command["args"][3:], *given)[:2] == (0, f"wrote {place[0] / NAME / '1'}\n")
        assert server.seen == []
        assert open_bundle(place[0] / NAME / "1").manifest.provenance.url == url

    @pytest.mark.parametrize("name", ["broken.tar.gz", "broken.safetensors"])
    def test_one_that_is_none_is_left_alone(self, name, command, place, server, tmp_path):
        (tmp_path / name).write_bytes(b"no checkpoint")
        code, out, err = condconv(*command["args"][3:], "--file", tmp_path / name, "--model-store", place[0])
        assert (code, out) == (1, "")
        assert name in err
        assert (tmp_path / name).read_bytes() == b"no checkpoint"
        assert server.seen == []

    def test_one_with_another_checksum(self, command, place, url, archive, tmp_path):
        write_catalogue(tmp_path / "own.json", tiny_entry(url, sha256="0" * 64))
        (tmp_path / "brought.tar.gz").write_bytes(archive)
        given = ["--file", tmp_path / "brought.tar.gz", "--model-store", place[0]]
        code, _, err = condconv(*command["args"][3:], *given)
        assert code == 1
        assert f"but the catalogue says {'0' * 64}." in err

    def test_none(self, command):
        code, _, err = condconv(*command["args"][3:], "--file", "absent.tar.gz")
        assert code == 2
        assert "absent.tar.gz" in err


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
