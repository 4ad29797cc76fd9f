"""The model store of a cluster is filled with what a list says: checked, whole, once, by one of many."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import runpy
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from condconv_serve.files import write_whole
from condconv_serve.store import open_bundle
from condconv_serve.store.new_bundle import write_bundle
from tests.deploy.commands import ROOT
from tests.unit.store.samples import new_bundle

SCRIPT = ROOT / "deploy/kubernetes/store/fetch_models.py"


class Site:
    """A site with archives, and what was asked of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(self, code: object = "-", size: object = "-") -> None:
                site.asked.append(self.path)

        made = functools.partial(Handler, directory=str(directory))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def put(self, name: str, source: Path, *members: str) -> str:
        """Offer an archive of some directories; its line in a list."""
        with tarfile.open(self.directory / name, "w:gz") as tar:
            for member in members:
                tar.add(source / member, member)
        digest = hashlib.sha256((self.directory / name).read_bytes()).hexdigest()
        return f"{digest}  {self.url}/{name}\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    made = Site(tmp_path / "site")
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A store with three bundles."""
    for name, version in (("small", "1"), ("small", "2"), ("other", "1")):
        write_bundle(tmp_path / "source", new_bundle(name=name, version=version))
    return tmp_path / "source"


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Do what a list says in a store, and give the store."""
    main = runpy.run_path(str(SCRIPT))["main"]
    shipped = tmp_path / "shipped"
    write_bundle(shipped, new_bundle(name="shipped"))
    (shipped / "default.json").write_text('{"model": "shipped"}')
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(shipped))
    store = tmp_path / "store"
    store.mkdir()

    def do(text: str) -> Path:
        listed = tmp_path / "models.txt"
        write_whole(listed, text)  # as a cluster does: others may be reading it
        main(listed, store)
        return store

    return do


def bundles(store: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(store)) for path in store.glob("[!.]*/*/manifest.json"))


def test_what_is_listed_is_fetched_once(site, source, fill, capsys):
    listed = "# ours\n\n" + site.put("a.tar.gz", source, "small/1", "other") + site.put("b.tar.gz", source, "small/2")
    store = fill(listed)
    assert bundles(store) == ["other/1", "small/1", "small/2"]
    for bundle in bundles(store):
        open_bundle(store / bundle)
    asked = len(site.asked)
    fill(listed)
    assert len(site.asked) == asked
    assert "is there" in capsys.readouterr().out
    # Nothing but a note of what was fetched is left.
    assert {path.suffix for path in (store / ".fetched").iterdir() if path.name != ".lock"} == {".txt"}


def test_what_has_been_removed_by_hand_comes_again(site, source, fill):
    listed = site.put("a.tar.gz", source, "small/1", "other")
    store = fill(listed)
    (store / "small/1").rename(store / ".gone")
    assert bundles(fill(listed)) == ["other/1", "small/1"]


def test_an_empty_store_gets_the_models_of_the_image_unless_something_is_listed(site, source, fill):
    listed = site.put("a.tar.gz", source, "small/1")
    store = fill("# nothing yet\n")
    assert bundles(store) == ["shipped/1"]
    assert (store / "default.json").read_text() == '{"model": "shipped"}'
    (store / "default.json").write_text('{"model": "small"}')
    assert bundles(fill(listed)) == ["shipped/1", "small/1"]
    fill("")
    assert (store / "default.json").read_text() == '{"model": "small"}'


def test_a_store_of_ones_own_does_not_get_the_models_of_the_image(site, source, fill):
    assert bundles(fill(site.put("a.tar.gz", source, "small/1"))) == ["small/1"]


def test_another_archive_than_the_listed_one_is_refused_and_not_kept(site, source, fill, tmp_path):
    listed = site.put("a.tar.gz", source, "small/1")
    site.put("a.tar.gz", source, "small/2")
    with pytest.raises(Exception, match=r"a\.tar\.gz has the SHA-256 [0-9a-f]{64}, but the list says"):
        fill(listed)
    site.put("a.tar.gz", source, "small/1")
    # A right one has another date in it, so it is listed anew.
    assert bundles(fill(site.put("a.tar.gz", source, "small/1"))) == ["small/1"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda source: (source / "small/1/labels.json").write_text("[]"), "labels.json"),
        (lambda source: (source / "small/1").rename(source / "small/7"), "small/7: the manifest says small/1"),
        (lambda source: (source / "small/note.txt").write_text("hi"), r"and what lies beside it, not small/note\.txt"),
        (lambda source: (source / "small/1/manifest.json").unlink(), "must hold MODEL/VERSION/manifest.json"),
    ],
    ids=["damaged file", "wrong place", "something else", "no manifest"],
)
def test_an_archive_that_holds_no_whole_bundles_changes_nothing(site, source, fill, tmp_path, damage, message):
    damage(source)
    with pytest.raises(Exception, match=message):
        fill(site.put("a.tar.gz", source, "other", "small"))
    assert bundles(tmp_path / "store") == []


def test_a_version_that_is_there_does_not_change(site, source, fill, tmp_path):
    store = fill(site.put("a.tar.gz", source, "small/1"))
    before = (store / "small/1/manifest.json").read_bytes()
    write_bundle(tmp_path / "new", new_bundle(licence="Apache-2.0"))
    with pytest.raises(Exception, match=r"The store has another small/1\. Versions don't change"):
        fill(site.put("b.tar.gz", tmp_path / "new", "small/1"))
    assert (store / "small/1/manifest.json").read_bytes() == before
    # The same one in another archive is no other one.
    fill(site.put("c.tar.gz", source, "small"))
    assert bundles(store) == ["small/1", "small/2"]


def test_names_that_lead_out_are_refused(site, fill, tmp_path):
    with tarfile.open(site.directory / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil"), io.BytesIO())
    digest = hashlib.sha256((site.directory / "a.tar").read_bytes()).hexdigest()
    with pytest.raises(Exception, match="may lead out of the directory"):
        fill(f"{digest} {site.url}/a.tar\n")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "line", ["small/1", "0" * 64, f"{'0' * 63} http://a/b", f"{'0' * 64} ftp://a/b", f"{'g' * 64} http://a/b"]
)
def test_lines_that_say_nothing_are_refused_by_number(fill, line):
    with pytest.raises(Exception, match=r"Line 2 must be a SHA-256, a space and a URL, but is"):
        fill(f"# first\n{line}\n")


def test_several_at_once_fetch_once(site, source, fill):
    listed = site.put("a.tar.gz", source, "small/1")
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(fill, [listed] * 4))
    assert bundles(stores[0]) == ["small/1"]
    assert len(site.asked) == 1


def test_as_a_command_it_says_what_is_wrong_in_a_line(tmp_path):
    (tmp_path / "models.txt").write_text("nonsense\n")
    (tmp_path / "store").mkdir()
    result = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "models.txt", tmp_path / "store"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "error: Line 1 must be a SHA-256, a space and a URL, but is 'nonsense'.\n"
