"""The Hub's own library against a local server that speaks the Hub's HTTP: a HEAD that tells, a GET that sends."""

import hashlib
import os
import re
import subprocess
import sys

import pytest

from condconv_serve.errors import ConfigurationError
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

    def __init__(self, content=CONTENT, sha256=SHA256):
        super().__init__()
        blob = self.add(STORAGE, content, etag=f'"{sha256}"').replace("127.0.0.1", "localhost")  # another host
        tells = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}

        def behave(handler: Handler, _: misbehave.File) -> None:
            handler.head(302, {**tells, "Location": blob, "Content-Length": "0"})

        self.add(PATH, b"", always=behave)

    @property
    def sent(self):
        """The ranges of the file that were asked for."""
        return [seen.headers.get("range") for seen in self.seen if (seen.method, seen.path) == ("GET", STORAGE)]


def environment(hub, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CONDCONV_")) and "proxy" not in k.lower()}
    return {**kept, "HF_ENDPOINT": hub.url(""), "HF_HUB_DISABLE_TELEMETRY": "1", **more}


@pytest.fixture
def download(tmp_path):
    """Download in a process of its own, since the library reads its environment once; prints the path or the error."""

    def run(hub, *, max_bytes=10**7, anew=False, **more):
        program = (
            "from pathlib import Path\n"
            "from condconv_serve.errors import DownloadFailed\n"
            "from condconv_serve.store.pull.hub import download_from_hub\n"
            "try: print(download_from_hub('timm/narrow.in1k', 'model.safetensors', revision='main', "
            f"max_bytes={max_bytes}, cache=Path({str(tmp_path)!r}), anew={anew}, quiet=True))\n"
            "except DownloadFailed as error: print(error)"
        )
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(hub, **more))
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run


def cached(tmp_path):
    return [path for path in tmp_path.rglob("blobs/*") if path.is_file()]


def test_a_file_is_downloaded_once(download, tmp_path):
    with Hub() as hub:
        path = download(hub)
        assert path.endswith(f"/models--timm--narrow.in1k/snapshots/{COMMIT}/model.safetensors")
        with open(path, "rb") as file:
            assert file.read() == CONTENT
        assert download(hub) == path
        assert hub.sent == [None]
        assert download(hub, anew=True) == path
        assert len(hub.sent) == 2
        agents = {seen.headers["user-agent"] for seen in hub.seen if seen.path == PATH}
        assert all(agent.startswith("condconv-serve/") for agent in agents)
    assert download(hub, HF_HUB_OFFLINE="1") == path, "without a network"


def test_a_broken_connection_is_resumed(download):
    content = CONTENT * 5  # the library writes 10 MB at a time
    with Hub(content, hashlib.sha256(content).hexdigest()) as hub:
        hub.files[STORAGE].behaviours = [misbehave.broken_after(14_000_000)]
        with open(download(hub, max_bytes=2 * 10**7), "rb") as file:
            assert file.read() == content
        first, second = hub.sent
        assert first is None
        assert re.fullmatch(r"bytes=[1-9]\d+-", second)


def test_another_content_than_the_hub_says(download, tmp_path):
    with Hub(bytes(len(CONTENT))) as hub:
        said = download(hub)
        assert f"should have SHA-256 {SHA256}, but has " in said
        assert said.endswith("It was deleted.")
        assert cached(tmp_path) == []
        hub.files[STORAGE].content = CONTENT
        assert download(hub).endswith("model.safetensors")


def test_a_damaged_cache(download, tmp_path):
    with Hub() as hub:
        path = download(hub)
        (blob,) = cached(tmp_path)
        blob.write_bytes(bytes(len(CONTENT)))
        assert "should have SHA-256" in download(hub)
        assert download(hub) == path
        assert len(hub.sent) == 2


def test_too_large(download, tmp_path):
    with Hub() as hub:
        assert f"has {len(CONTENT)} bytes; the most allowed is 1000000." in download(hub, max_bytes=10**6)
        assert hub.sent == []
    assert cached(tmp_path) == []


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_the_hub_does_not_give(code, download, tmp_path):
    with Hub() as hub:
        hub.files[PATH].always = misbehave.status(code)
        said = download(hub)
        assert said.startswith(
            "model.safetensors of timm/narrow.in1k (main) on the Hugging Face Hub can't be downloaded: "
        )
        assert len(said.splitlines()) == 1
    assert cached(tmp_path) == []


def test_without_a_network(download):
    with Hub() as hub:
        assert "on the Hugging Face Hub can't be downloaded: " in download(hub, HF_HUB_OFFLINE="1")
        assert hub.seen == []


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'condconv-serve\[hub\]'"):
        download_from_hub("a/b", "c.safetensors", revision="main", max_bytes=1)
