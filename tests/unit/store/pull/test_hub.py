"""The Hub's own library against a local server that speaks the Hub's HTTP: a HEAD that tells, a GET that sends."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.store.pull.download import Limits
from condconv_serve.store.pull.hub import download_from_hub
from tests.unit.store.pull import file_server as misbehave
from tests.unit.store.pull.file_server import FileServer, Handler

pytestmark = pytest.mark.slow

pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef" * 2 + "01234567"
PATH = "/timm/narrow.in1k/resolve/main/model.safetensors"
STORAGE = "/storage/blob"


class Hub(FileServer):
    """One file in one repository; large files lie elsewhere, as on the real Hub."""

    def publish(self, content=CONTENT, sha256=SHA256):
        """Have this file and no other, and forget what was asked before."""
        self.files.clear()
        self.seen.clear()
        blob = self.add(STORAGE, content, etag=f'"{sha256}"').replace("127.0.0.1", "localhost")  # another host
        tells = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}

        def behave(handler: Handler, _: misbehave.File) -> None:
            handler.head(302, {**tells, "Location": blob, "Content-Length": "0"})

        self.add(PATH, b"", always=behave)

    @property
    def sent(self):
        """The ranges of the file that were asked for."""
        return [seen.headers.get("range") for seen in self.seen if (seen.method, seen.path) == ("GET", STORAGE)]


PROGRAM = """
import json, sys
from pathlib import Path
from condconv_serve.errors import DownloadFailed
from condconv_serve.store.pull.download import Limits
from condconv_serve.store.pull.hub import download_config, download_from_hub
for line in sys.stdin:
    given = json.loads(line)
    cache, limits = Path(given.pop("cache")), Limits(connect_timeout=60, max_bytes=given.pop("max_bytes"))
    get = download_config if given.pop("config") else download_from_hub
    try:
        said = get("timm/narrow.in1k", "model.safetensors", revision="main", cache=cache, limits=limits, **given)
    except DownloadFailed as error:
        said = error
    print(json.dumps(str(said)), flush=True)
"""


@contextlib.contextmanager
def process_of_its_own(hub, **more):
    """A process that downloads what it is asked for, since the library reads its environment once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CONDCONV_")) and "proxy" not in k.lower()}
    given = {**kept, "HF_ENDPOINT": hub.url(""), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, text=True, env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


@pytest.fixture(scope="module")
def running():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def online(running):
    with process_of_its_own(running) as process:
        yield process


@pytest.fixture(scope="module")
def offline(running):
    with process_of_its_own(running, HF_HUB_OFFLINE="1") as process:
        yield process


@pytest.fixture
def hub(running):
    running.publish()
    return running


@pytest.fixture
def download(online, tmp_path):
    """Download into a cache of the test's own; returns the path or the error."""

    def run(process=online, *, max_bytes=10**7, anew=False, config=False):
        given = {"cache": str(tmp_path), "max_bytes": max_bytes, "anew": anew, "config": config, "quiet": True}
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    return run


def cached(tmp_path):
    return [path for path in tmp_path.rglob("blobs/*") if path.is_file()]


def test_a_file_is_downloaded_once(hub, download, offline):
    path = download()
    assert path.endswith(f"/models--timm--narrow.in1k/snapshots/{COMMIT}/model.safetensors")
    with open(path, "rb") as file:
        assert file.read() == CONTENT
    assert download() == path
    assert hub.sent == [None]
    assert download(anew=True) == path
    assert len(hub.sent) == 2
    agents = {seen.headers["user-agent"] for seen in hub.seen if seen.path == PATH}
    assert all(agent.startswith("condconv-serve/") for agent in agents)
    hub.seen.clear()
    assert download(offline) == path, "without a network"
    assert hub.seen == []


def test_the_configuration_lands_beside_the_weights(hub, download, offline):
    weights = download()
    assert download(config=True) == "None", "the repository has none"
    said = {"X-Repo-Commit": COMMIT, "ETag": '"0123"'}
    hub.add(PATH.replace("model.safetensors", "config.json"), b'{"pretrained_cfg": {}}', etag='"0123"', headers=said)
    found = download(config=True)
    assert found == weights.replace("model.safetensors", "config.json")
    with open(found, "rb") as file:
        assert file.read() == b'{"pretrained_cfg": {}}'
    assert download(offline, config=True) == found


def test_a_broken_connection_is_resumed(hub, download):
    content = CONTENT * 5  # the library writes 10 MB at a time
    hub.publish(content, hashlib.sha256(content).hexdigest())
    hub.files[STORAGE].behaviours = [misbehave.broken_after(14_000_000)]
    with open(download(max_bytes=2 * 10**7), "rb") as file:
        assert file.read() == content
    first, second = hub.sent
    assert first is None
    assert re.fullmatch(r"bytes=[1-9]\d+-", second)


def test_another_content_than_the_hub_says(hub, download, tmp_path):
    hub.publish(bytes(len(CONTENT)))
    said = download()
    assert f"should have SHA-256 {SHA256}, but has " in said
    assert said.endswith("It was deleted.")
    assert cached(tmp_path) == []
    hub.files[STORAGE].content = CONTENT
    assert download().endswith("model.safetensors")


def test_a_damaged_cache(hub, download, tmp_path):
    path = download()
    (blob,) = cached(tmp_path)
    blob.write_bytes(bytes(len(CONTENT)))
    assert "should have SHA-256" in download()
    assert download() == path
    assert len(hub.sent) == 2


def test_too_large(hub, download, tmp_path):
    assert f"has {len(CONTENT)} bytes; the most allowed is 1000000." in download(max_bytes=10**6)
    assert hub.sent == []
    assert cached(tmp_path) == []


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_the_hub_does_not_give(code, hub, download, tmp_path):
    hub.files[PATH].always = misbehave.status(code)
    said = download()
    assert said.startswith("model.safetensors of timm/narrow.in1k (main) on the Hugging Face Hub can't be downloaded: ")
    assert len(said.splitlines()) == 1
    assert cached(tmp_path) == []


def test_without_a_network(hub, download, offline):
    assert "on the Hugging Face Hub can't be downloaded: " in download(offline)
    assert hub.seen == []


def test_no_way_to_the_hub(hub, download, tmp_path, nobody):
    """What the cache has is taken, and the rest is refused before the library tries again and again."""
    with process_of_its_own(hub, HF_ENDPOINT=f"http://{nobody}") as cut_off:
        assert download(cut_off) == "127.0.0.1 can't be reached: connection refused."
        began = time.monotonic()
        path = download()
        assert download(cut_off) == path
        assert download(cut_off, anew=True) == "127.0.0.1 can't be reached: connection refused."
        assert time.monotonic() - began < 20
        cut_off.stdin.close()


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'condconv-serve\[hub\]'"):
        download_from_hub("a/b", "c.safetensors", revision="main", limits=Limits())
