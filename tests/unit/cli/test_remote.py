"""What a server's answers are taken for, if they are anybody's."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from condconv_serve.cli.remote import RemoteService
from condconv_serve.errors import RemoteFailed


@pytest.fixture
def stranger():
    """A server that answers everything alike; `answer` is its status and body, `seen` the paths and keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.seen.append((self.path, self.headers.get("X-API-Key")))
            status, body = server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server, user=""):
    return f"http://{user}127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    "body",
    [b"<html>log in</html>", b"{}", b"[1]", b"null", b'{"state": 5}', b'{"versions": {}}', b'{"versions": {"1": 0}}'],
)
@pytest.mark.parametrize("status", [200, 502])
def test_answers_of_strangers(stranger, status, body):
    stranger.answer = status, body
    with RemoteService(url(stranger, "user:secret@")) as remote:
        for ask in (
            lambda: remote.load("m", "1"),
            lambda: remote.unload("m", "1"),
            lambda: remote.aliases("m"),
            lambda: remote.set_alias("m", "a", {"1": 1}),
            lambda: remote.roll_back("m", "a"),
        ):
            with pytest.raises(RemoteFailed) as failed:
                ask()
            assert (
                str(failed.value)
                == f"The server at {url(stranger)} answered {status}, but this is no answer of condconv-serve."
            )


def test_answers_of_ours(stranger):
    with RemoteService(url(stranger), api_key="key\r\n") as remote:
        stranger.answer = 200, b'{"state": "serving", "more": 1}'
        assert remote.load("m\udcff", "1") == "serving"
        stranger.answer = 200, json.dumps({"aliases": {"a": {"versions": {"1": 2}}}}).encode()
        assert remote.aliases("m") == {"a": {"1": 2}}
        stranger.answer = 204, b""
        remote.delete_alias("m", "a")
        stranger.answer = 404, b'{"detail": "There is no such model."}'
        with pytest.raises(RemoteFailed, match=r"^There is no such model\.$"):
            remote.load("m", "1")
    assert stranger.seen[0] == ("/models/m%FF/versions/1/load", "key")


@pytest.mark.parametrize("key", ["a\nb", "\xe9", "\x1b"])
def test_impossible_keys_are_not_repeated(key):
    with pytest.raises(RemoteFailed, match=r"^The API key holds characters that no key has\.$"):
        RemoteService("http://127.0.0.1:1", api_key=key)
