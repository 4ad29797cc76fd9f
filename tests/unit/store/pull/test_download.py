"""The downloader against a real server that breaks, lies, changes its mind, and stalls."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from condconv_serve.errors import DownloadFailed
from condconv_serve.store.pull.download import Limits, download, fetch_small, mirrored, shown
from condconv_serve.store.pull.reach import Unreachable, check_reachable
from tests.unit.store.pull import file_server as misbehave
from tests.unit.store.pull.file_server import FileServer, ProxyServer

pytestmark = pytest.mark.slow

PATIENT = "Limits(connect_timeout=60)"
"""For processes of their own."""
CONTENT = os.urandom(3_000_000)
OTHER = os.urandom(2_000_000)
QUICK = Limits(pause=0.01, longest_pause=0.02, attempts=3, connect_timeout=60, stall_timeout=60)


class Heard:
    """A reporter that remembers."""

    def __init__(self):
        self.counts, self.notes = [], []

    def received(self, count, total):
        self.counts.append((count, total))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "weights.tar.gz"


@pytest.fixture
def heard():
    return Heard()


def left(target):
    return sorted(path.name for path in target.parent.iterdir())


def ranges(server):
    return [seen.headers.get("range") for seen in server.seen]


def test_a_file_is_downloaded_whole(server, target, heard):
    assert download(server.add("/w", CONTENT), target, reporter=heard) == target
    assert target.read_bytes() == CONTENT
    assert left(target) == [target.name]
    assert heard.counts[0] == (0, len(CONTENT))
    assert heard.counts[-1] == (len(CONTENT), len(CONTENT))
    assert heard.notes == []
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_what_is_there_is_not_downloaded_again(server, target):
    url = server.add("/w", CONTENT)
    download(url, target)
    download(url, target)
    assert len(server.seen) == 1


def test_broken_connections_are_resumed(server, target, heard):
    breaks = [misbehave.broken_after(n) for n in (1_000_000, 0, 700_000, 1)]
    download(server.add("/w", CONTENT, *breaks), target, limits=QUICK, reporter=heard)
    assert target.read_bytes() == CONTENT
    starts = [int(re.fullmatch(r"bytes=(\d+)-", r)[1]) for r in ranges(server)[1:]]
    assert starts == [1_000_000, 1_000_000, 1_700_000, 1_700_001]
    assert {seen.headers.get("if-range") for seen in server.seen[1:]} == {'"first"'}
    assert len(heard.notes) == 4
    assert heard.notes[0].startswith("After 1000000 bytes: ")


def test_the_next_call_goes_on_where_the_last_one_gave_up(server, target):
    url = server.add("/w", CONTENT, misbehave.broken_after(1_500_000), always=misbehave.broken_after(0))
    with pytest.raises(DownloadFailed, match=r"1500000 bytes are kept, and another try goes on from there\.$"):
        download(url, target, limits=QUICK)
    assert left(target) == ["weights.tar.gz.part", "weights.tar.gz.part.json"]
    server.files["/w"].always = None
    server.seen.clear()
    download(url, target, limits=QUICK)
    assert ranges(server) == ["bytes=1500000-"]
    assert target.read_bytes() == CONTENT
    assert left(target) == [target.name]


@pytest.mark.parametrize(
    "second",
    [
        misbehave.replaced_by(OTHER, '"second"'),
        misbehave.replaced_by(OTHER, '"second"', misbehave.wrong_range(1_000_000)),
        misbehave.replaced_by(OTHER, None, misbehave.wrong_range(1_000_000)),
    ],
    ids=["sent whole", "a part of it sent although If-Range forbids that", "which only its length tells"],
)
def test_a_file_that_changes_is_downloaded_anew(second, server, target):
    url = server.add("/w", CONTENT, misbehave.broken_after(1_000_000), second)
    download(url, target, limits=QUICK)
    assert target.read_bytes() == OTHER


def test_a_file_that_changes_and_is_now_shorter_than_what_is_there(server, target):
    url = server.add("/w", CONTENT, misbehave.broken_after(2_500_000), misbehave.replaced_by(OTHER, '"second"'))
    download(url, target, limits=QUICK)
    assert target.read_bytes() == OTHER


def test_a_server_without_ranges_starts_over(server, target, heard):
    plain = misbehave.ignoring_ranges()
    url = server.add("/w", CONTENT, misbehave.broken_after(1_000_000), plain)
    download(url, target, limits=QUICK, reporter=heard)
    assert target.read_bytes() == CONTENT
    assert "from its beginning; starting over." in heard.notes[-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_resumed(etag, server, target):
    url = server.add("/w", CONTENT, misbehave.broken_after(1_000_000), etag=etag)
    download(url, target, limits=QUICK)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_a_date_will_do_for_an_etag(server, target):
    date = "Tue, 15 Oct 2019 18:00:00 GMT"
    url = server.add("/w", CONTENT, misbehave.broken_after(1_000_000), etag=None, headers={"Last-Modified": date})
    download(url, target, limits=QUICK)
    assert target.read_bytes() == CONTENT
    assert server.seen[1].headers["if-range"] == date


def test_another_range_than_was_asked_for(server, target):
    url = server.add("/w", CONTENT, misbehave.broken_after(1_000_000), misbehave.wrong_range(900_000))
    download(url, target, limits=QUICK)
    assert target.read_bytes() == CONTENT


def test_killed_between_the_last_byte_and_the_end(server, target):
    """All is there, but still called a part: the server has nothing more to send."""
    url = server.add("/w", CONTENT)
    download(url, target)
    target.rename(target.with_name(f"{target.name}.part"))
    notes = f'{{"validator": "\\"first\\"", "total": {len(CONTENT)}}}'
    target.with_name(f"{target.name}.part.json").write_text(notes)
    download(url, target, limits=QUICK)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("notes", [None, "", "{", '{"validator": 7}', "[]"])
def test_a_part_whose_notes_are_lost_is_not_trusted(notes, server, target):
    target.parent.mkdir()
    target.with_name(f"{target.name}.part").write_bytes(OTHER[:1000])
    if notes is not None:
        target.with_name(f"{target.name}.part.json").write_text(notes)
    download(server.add("/w", CONTENT), target)
    assert target.read_bytes() == CONTENT


class TestLengths:
    def test_a_longer_file_is_announced_than_comes(self, server, target):
        url = server.add("/w", CONTENT, always=misbehave.announcing(len(CONTENT) + 10))
        with pytest.raises(
            DownloadFailed, match=r"can't be downloaded: .*Given up after 3 attempts that got no further"
        ):
            download(url, target, limits=QUICK)
        assert not target.exists()

    def test_a_shorter_file_is_announced_than_the_catalogue_says(self, server, target):
        url = server.add("/w", CONTENT, always=misbehave.announcing(1_000))
        with pytest.raises(DownloadFailed, match=f"has 1000 bytes, but the catalogue says {len(CONTENT)}"):
            download(url, target, size=len(CONTENT), limits=QUICK)
        assert not target.exists()

    def test_no_length_is_announced(self, server, target, heard):
        download(server.add("/w", CONTENT, misbehave.chunked), target, size=len(CONTENT), reporter=heard)
        assert target.read_bytes() == CONTENT
        assert heard.counts[-1] == (len(CONTENT), None)

    def test_no_length_is_announced_and_it_is_wrong(self, server, target):
        url = server.add("/w", CONTENT, misbehave.chunked)
        with pytest.raises(DownloadFailed, match=f"has {len(CONTENT)} bytes, but the catalogue says 7"):
            download(url, target, size=7)
        assert not target.exists()

    def test_too_large_by_its_own_account(self, server, target):
        limits = Limits(max_bytes=len(CONTENT) - 1)
        with pytest.raises(DownloadFailed, match=f"has {len(CONTENT)} bytes; the most allowed is {len(CONTENT) - 1}"):
            download(server.add("/w", CONTENT), target, limits=limits)
        assert not target.exists()

    def test_too_large_without_saying_so(self, server, target):
        with pytest.raises(DownloadFailed, match="has more than 1000000 bytes, the most allowed"):
            download(server.add("/w", CONTENT, misbehave.chunked), target, limits=Limits(max_bytes=1_000_000))
        assert not target.exists()
        assert sum(path.stat().st_size for path in target.parent.iterdir()) < 1_100_000

    def test_larger_than_the_disk(self, server, target):
        url = server.add("/w", CONTENT, misbehave.announcing(2**60))
        with pytest.raises(
            DownloadFailed, match=r"There is no room for .*: 1152921504606846976 bytes are still to come"
        ):
            download(url, target, limits=Limits(max_bytes=2**61))


class TestAnswers:
    @pytest.mark.parametrize(
        ("code", "says"),
        [(401, "it wants a login"), (403, "it gives the file to nobody"), (404, "no such file"), (410, "")],
    )
    def test_final_ones(self, code, says, server, target):
        url = server.add("/w", CONTENT, misbehave.status(code))
        with pytest.raises(DownloadFailed, match=rf"/w answers with status {code}.*{says}"):
            download(url, target, limits=QUICK)
        assert len(server.seen) == 1
        assert not target.exists()

    @pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
    def test_passing_ones(self, code, server, target, heard):
        download(server.add("/w", CONTENT, misbehave.status(code)), target, limits=QUICK, reporter=heard)
        assert target.read_bytes() == CONTENT
        assert f"status {code}" in heard.notes[0]

    def test_passing_ones_that_do_not_pass(self, server, target):
        url = server.add("/w", CONTENT, always=misbehave.status(503))
        with pytest.raises(DownloadFailed, match=r"status 503\. Given up after 3 attempts"):
            download(url, target, limits=QUICK)
        assert len(server.seen) == 3

    @pytest.mark.parametrize(("answer", "least"), [("1", 0.9), ("soon", 0)])
    def test_retry_after(self, answer, least, server, target):
        url = server.add("/w", CONTENT, misbehave.status(429, Retry_After=answer))
        began = time.monotonic()
        download(url, target, limits=Limits(pause=0.01, longest_pause=2))
        assert least <= time.monotonic() - began < 15

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_redirects(self, code, server, target):
        goal = server.add("/goal", CONTENT, misbehave.broken_after(1_000_000))
        url = server.add("/w", b"", always=misbehave.status(code, Location=goal))
        download(url, target, limits=QUICK)
        assert target.read_bytes() == CONTENT
        assert server.seen[-1].headers["range"] == "bytes=1000000-", "of the file itself"

    def test_redirects_in_a_circle(self, server, target):
        url = server.add("/w", b"", always=misbehave.status(302, Location="/w"))
        with pytest.raises(DownloadFailed, match="redirect"):
            download(url, target, limits=QUICK)
        assert len(server.seen) < 15

    @pytest.mark.parametrize("elsewhere", ["file:///etc/passwd", "ftp://127.0.0.1/w"])
    def test_redirects_to_where_no_file_can_be(self, elsewhere, server, target):
        url = server.add("/w", b"", always=misbehave.status(302, Location=elsewhere))
        with pytest.raises(DownloadFailed, match="/w "):
            download(url, target, limits=QUICK)
        assert len(server.seen) == 1
        assert not target.exists()


class TestPatience:
    def test_a_server_that_falls_silent(self, server, target):
        url = server.add("/w", CONTENT, always=misbehave.silent_at(1_000_000))
        began = time.monotonic()
        download(url, target, limits=Limits(stall_timeout=0.3, pause=0.01))
        assert time.monotonic() - began < 30
        assert target.read_bytes() == CONTENT
        assert "bytes=1000000-" in ranges(server), "others only if the server was too slow before"

    def test_a_server_that_drips(self, server, target, heard):
        def noticed():
            return any(re.search(r"only \d+ bytes came in 0.3 seconds", note) for note in heard.notes)

        url = server.add("/w", CONTENT, always=misbehave.dripping_until(noticed))
        limits = Limits(stall_timeout=0.3, stall_bytes=1000, pause=0.01, longest_pause=0.02, attempts=100)
        download(url, target, limits=limits, reporter=heard)
        assert target.read_bytes() == CONTENT
        assert noticed()

    def test_nobody_listens(self, target, nobody):
        url = f"http://{nobody}/w"
        with pytest.raises(Unreachable, match=r"^127\.0\.0\.1 can't be reached: connection refused\.$") as caught:
            download(url, target, limits=QUICK)
        assert caught.value.proxy is None
        assert left(target) == ["weights.tar.gz.part.json"]

    def test_a_name_that_does_not_exist(self, target):
        with pytest.raises(Unreachable, match=r"^nowhere\.invalid can't be reached: its name can't be looked up"):
            download("http://user:secret@nowhere.invalid/w?token=secret", target, limits=QUICK)

    def test_a_server_that_lets_nobody_in(self, target):
        """Its queue of connections is full, so packets are dropped as they are in many networks without a way out."""
        with full_queue() as address, pytest.raises(Unreachable, match=r"no connection in 0\.3 seconds\.$"):
            download(f"http://{address}/w", target, limits=replace(QUICK, connect_timeout=0.3))

    def test_a_lookup_that_hangs(self, target, monkeypatch):
        released = threading.Event()

        def hang(*_, **__):
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "too late")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"no connection in 0\.3 seconds"):
            download("https://example.org/w", target, limits=replace(QUICK, connect_timeout=0.3))
        assert time.monotonic() - began < 15
        released.set()

    def test_one_address_of_two_leads_nowhere(self, server, target, monkeypatch):
        """As where IPv6 is announced, but dropped."""
        found = urlsplit(server.add("/w", CONTENT))
        lookup = socket.getaddrinfo

        def both(host, port, *more, **options):
            dropped = lookup(*dead.rsplit(":", 1), *more, **options)
            return dropped + lookup(found.hostname, found.port, *more, **options)

        with full_queue() as dead, monkeypatch.context() as patched, httpx.Client() as client:
            patched.setattr(socket, "getaddrinfo", both)
            assert check_reachable(client, "http://example.org/w", seconds=60) is None


@pytest.fixture
def proxied(monkeypatch):
    """Make requests go through a proxy."""

    def through(address):
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{address}")
        monkeypatch.delenv("no_proxy", raising=False)

    return through


class TestThroughAProxy:
    def test_that_is_not_there(self, target, proxied, nobody):
        proxied(nobody)
        with pytest.raises(Unreachable) as caught:
            download("https://example.org/w", target, limits=QUICK)
        assert str(caught.value) == f"The proxy {nobody} can't be used to reach example.org: connection refused."
        assert caught.value.proxy == nobody

    def test_that_is_none(self, server, target, proxied):
        """A web server that knows no CONNECT."""
        proxied(urlsplit(server.url("/")).netloc)
        with pytest.raises(Unreachable, match=r"^The proxy 127\.0\.0\.1:\d+ can't be used to reach example\.org: 501"):
            download("https://example.org/w", target, limits=replace(QUICK, pause=10))


@contextlib.contextmanager
def full_queue():
    """A listening socket that lets nobody in any more."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, contextlib.ExitStack() as waiting:
        for _ in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


class TestEncrypted:
    @pytest.fixture
    def authority(self):
        return trustme.CA()

    @pytest.fixture
    def secure(self, authority):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        with FileServer(context=context) as running:
            yield running

    @pytest.fixture
    def _trusted(self, authority, monkeypatch, tmp_path):
        authority.cert_pem.write_to_path(tmp_path / "authority.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))

    @pytest.mark.usefixtures("_trusted")
    def test_through_a_proxy(self, secure, target, monkeypatch):
        with ProxyServer() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url(""))
            download(secure.add("/w", CONTENT, misbehave.broken_after(1_000_000)), target, limits=QUICK)
            assert target.read_bytes() == CONTENT
            assert {(seen.method, seen.path) for seen in proxy.seen} == {("CONNECT", f"127.0.0.1:{secure.port}")}
        assert ranges(secure) == [None, "bytes=1000000-"]

    def test_an_unknown_certificate(self, secure, target, heard):
        with pytest.raises(DownloadFailed, match=r"can't be downloaded: .*CERTIFICATE_VERIFY_FAILED"):
            download(secure.add("/w", CONTENT), target, limits=QUICK, reporter=heard)
        assert heard.notes == [], "another attempt would be in vain"
        assert secure.seen == []

    @pytest.mark.usefixtures("_trusted")
    def test_redirects_to_where_it_is_not(self, secure, server, target):
        plain = server.add("/w", CONTENT)
        url = secure.add("/w", b"", always=misbehave.status(302, Location=plain))
        with pytest.raises(DownloadFailed, match=f"{url} leads to {plain}, which is not encrypted"):
            download(url, target, limits=QUICK)
        assert server.seen == []


class TestWays:
    def test_a_proxy(self, server, target, monkeypatch):
        with ProxyServer() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url(""))
            monkeypatch.setenv("http_proxy", proxy.url(""))
            url = server.add("/w", CONTENT)
            download(url, target)
            assert target.read_bytes() == CONTENT
            assert [seen.path for seen in proxy.seen] == [url]

            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            download(url, target.with_name("other"))
            assert len(proxy.seen) == 1

    def test_a_proxy_that_is_none(self, server, target, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1")
        with pytest.raises(Exception, match="The environment's proxy or certificates can't be used"):
            download(server.add("/w", CONTENT), target)

    @pytest.mark.parametrize(
        ("mirror", "expected"),
        [
            (None, "https://storage.example.org/a/b.tar.gz?x=1"),
            ("http://localhost:9", "http://localhost:9/a/b.tar.gz?x=1"),
            ("https://m.example.org/storage/", "https://m.example.org/storage/a/b.tar.gz?x=1"),
        ],
    )
    def test_mirrors(self, mirror, expected):
        assert mirrored("https://storage.example.org/a/b.tar.gz?x=1", mirror) == expected

    def test_secrets_are_not_shown(self):
        assert shown("https://me:secret@example.org:8443/a/b?token=secret#c") == "https://example.org:8443/a/b"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_in_the_middle(how, server, target):
    url = server.add("/w", CONTENT, misbehave.stalled_after(2_000_000))
    program = "import sys; from pathlib import Path; from condconv_serve.store.pull.download import Limits, download; "
    program += f"download({url!r}, Path({str(target)!r}), limits={PATIENT})"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    part = target.with_name(f"{target.name}.part")
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size == 2_000_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(60) != 0
    assert left(target) == ["weights.tar.gz.part", "weights.tar.gz.part.json"]
    download(url, target)
    assert ranges(server) == [None, "bytes=2000000-"]
    assert target.read_bytes() == CONTENT


def test_the_disk_is_full(server, target):
    """A limit of file sizes stands for the disk: the kernel refuses to write on."""
    url = server.add("/w", CONTENT)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from pathlib import Path; from condconv_serve.store.pull.download import Limits, download\n"
        "from condconv_serve.errors import DownloadFailed\n"
        f"try: download({url!r}, Path({str(target)!r}), limits={PATIENT})\n"
        "except DownloadFailed as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    assert re.match(
        r"There is no room for http://.*/w: File too large\. \d+ bytes are kept, and another", result.stdout
    )
    assert left(target) == ["weights.tar.gz.part", "weights.tar.gz.part.json"]
    download(url, target)
    assert ranges(server)[1] == "bytes=1000000-", "the space was there, it goes on"
    assert target.read_bytes() == CONTENT


class TestSmallDocuments:
    def test_they_are_fetched(self, server):
        assert fetch_small(server.add("/c", b"{}"), max_bytes=10, limits=QUICK) == b"{}"

    @pytest.mark.parametrize("behaviour", [misbehave.serve, misbehave.chunked])
    def test_too_large(self, behaviour, server):
        with pytest.raises(DownloadFailed, match="/c has more than 10 bytes"):
            fetch_small(server.add("/c", CONTENT, behaviour), max_bytes=10, limits=QUICK)

    @pytest.mark.parametrize("behaviour", [misbehave.status(404), misbehave.broken_after(5)])
    def test_failures(self, behaviour, server):
        with pytest.raises(DownloadFailed, match="/c "):
            fetch_small(server.add("/c", CONTENT, behaviour), max_bytes=10**7, limits=QUICK)
