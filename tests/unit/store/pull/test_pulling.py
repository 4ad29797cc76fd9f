"""Published checkpoints become bundles, or nothing at all."""

import dataclasses
import hashlib
import io
import json
import random
import resource
import tarfile
import threading

import numpy as np
import pytest

from condconv_serve.domain import Label
from condconv_serve.errors import (
    BundleError,
    ConfigurationError,
    DownloadFailed,
    ImportFailed,
    InvalidParameter,
)
from condconv_serve.files import sha256_of
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import Catalog, open_bundle, read_labels
from condconv_serve.store.importers import bundling
from condconv_serve.store.pull import pulling
from condconv_serve.store.pull.checksums import Checksums
from condconv_serve.store.pull.download import Limits
from condconv_serve.store.pull.published import Checkpoint
from condconv_serve.store.pull.pulling import PullRequest, pull
from tests.parity.seeded import official_tensors, read_tiny, waves
from tests.unit.store.pull import file_server as misbehave
from tests.unit.store.pull.conftest import NAME, as_checkpoint, packed, shallow_tensors, tiny_entry
from tests.unit.store.samples import PLAN

pytestmark = pytest.mark.tensorflow

QUICK = Limits(pause=0.01, longest_pause=0.02, attempts=3, connect_timeout=60, stall_timeout=60)
PATH = f"/storage/{NAME}.tar.gz"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def place(tmp_path):
    """A model store and a cache, neither of which exists yet."""
    return tmp_path / "store", tmp_path / "cache"


@pytest.fixture
def pulled(place):
    """Pull an entry of a catalogue."""
    store, cache = place

    def run(entry, **changes):
        request = PullRequest(
            checkpoint=Checkpoint.model_validate_json(json.dumps(entry)),
            **{"name": entry["name"], "version": "1", "cache": cache, "limits": QUICK} | changes,
        )
        return pull(request, store=store)

    return run


@pytest.fixture
def url(server, archive):
    return server.add(PATH, archive)


def files(directory):
    """All files below, but for locks."""
    found = directory.rglob("*") if directory.exists() else ()
    return sorted(str(p.relative_to(directory)) for p in found if p.is_file() and not p.name.endswith(".lock"))


def nothing_but(place, *cached):
    """There is no bundle and no trace of one, and in the cache no more than that."""
    store, cache = place
    assert [name for name in files(store) if name != "checksums.json"] == []
    assert not store.exists() or [path for path in store.iterdir() if path.is_dir()] == []
    assert {name.rpartition("/")[2] for name in files(cache)} == set(cached)
    assert list(cache.rglob("unpacked")) == []


@pytest.fixture(scope="module")
def whole_archive(tmp_path_factory):
    """The archive of the whole network, whose outputs are known."""
    return packed(as_checkpoint(official_tensors(*read_tiny()), tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def made(tmp_path_factory, whole_archive):
    directory = tmp_path_factory.mktemp("made")
    with misbehave.FileServer() as server:
        url = server.add(PATH, whole_archive, misbehave.broken_after(200_000))
        spec, _ = read_tiny()
        architecture = {"name": spec["architecture"], **spec["override"]}
        entry = tiny_entry(url, method="Seeded.", architecture=architecture)
        request = PullRequest(
            checkpoint=Checkpoint.model_validate_json(json.dumps(entry)),
            name="narrow",
            version="3",
            cache=directory / "cache",
            limits=QUICK,
        )
        result = pull(request, store=directory / "store")
    assert result.new
    assert result.path == directory / "store" / "narrow" / "3"
    return open_bundle(result.path), url


class TestABundle:
    def test_computes_what_the_official_code_computes(self, made, assert_close):
        """Pixels are rounded on their way to the engine, which moves the outputs a little."""
        bundle, _ = made
        bundle = dataclasses.replace(
            bundle,
            manifest=bundle.manifest.model_copy(
                update={"preprocessing": bundle.manifest.preprocessing.model_copy(update={"image_size": 96})}
            ),
        )
        model = load_model(bundle, PLAN)
        _, stored = read_tiny()
        rows = np.clip(np.round(waves()), 0, 255).astype(np.uint8)
        outputs = [model.engine(rows[i : i + 2]) for i in (0, 2)]
        model.engine.close()
        assert_close(np.concatenate([o["routing"] for o in outputs]), stored["routing"], 0.02)

    def test_says_where_it_comes_from(self, made, whole_archive):
        bundle, url = made
        manifest = bundle.manifest
        assert manifest.provenance.model_dump() == {
            "source": f"{NAME}.tar.gz",
            "method": "Seeded.",
            "url": url,
            "source_sha256": sha256(whole_archive),
            "weights": "averaged",
            "origins": manifest.provenance.origins,
            "assumed": ("mean", "std", "labels"),
        }
        assert manifest.provenance.origins["transform"] == "the catalogue"
        assert manifest.licence == "Apache-2.0"
        (accuracy,) = manifest.accuracy
        assert (accuracy.top1, accuracy.note) == (0.125, "made up; not measured here")
        assert manifest.architecture.model_dump() == {
            "name": "efficientnet-condconv-b0-4e",
            "width_coefficient": 0.25,
            "num_classes": 10,
        }
        assert manifest.preprocessing.mean == (127.0, 127.0, 127.0)
        assert [label.label for label in read_labels(bundle)] == [f"class {i}" for i in range(10)]
        assert sha256(whole_archive) in bundle.model_card
        assert "top-1 12.5% (made up; not measured here)" in bundle.model_card

    def test_leaves_nothing_beside_itself(self, made):
        bundle, _ = made
        store = bundle.path.parents[1]
        assert {name.partition("/")[0] for name in files(store)} == {"narrow", "checksums.json", "default.json"}
        assert list(Catalog(store)) == [bundle.path]
        assert [name.rpartition("/")[2] for name in files(store.parent / "cache")] == [f"{NAME}.tar.gz"]


def test_what_the_catalogue_says_goes_into_the_bundle(pulled, url):
    labels = [{"index": i, "label": f"label {i}", "synset": f"n{i}"} for i in range(10)]
    architecture = {**tiny_entry(url)["architecture"], "image_size": 64}
    entry = tiny_entry(
        url, transform="pillow", mean=[127.5] * 3, std=[127.5] * 3, labels=labels, architecture=architecture
    )
    bundle = open_bundle(pulled(entry).path)
    preprocessing = bundle.manifest.preprocessing
    assert (preprocessing.transform, preprocessing.image_size) == ("pillow", 64)
    assert (preprocessing.mean, preprocessing.std) == ((127.5,) * 3, (127.5,) * 3)
    assert read_labels(bundle)[3] == Label(3, "label 3", "n3")


def test_a_safetensors_file_behind_a_url(pulled, server, place, tmp_path):
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(v) for name, v in shallow_tensors().items()})
    entry = tiny_entry(server.add("/w.safetensors", content), name="plain")
    assert open_bundle(pulled(entry).path).manifest.provenance.source_sha256 == sha256(content)
    server.files["/w.safetensors"].content = content[:-100]
    with pytest.raises(DownloadFailed, match="at its first pull"):
        pulled(entry, accept_changed=False, version="2", cache=tmp_path / "elsewhere")
    with pytest.raises(ImportFailed, match=r"^w\.safetensors can't be read as safetensors: "):
        pulled(entry, accept_changed=True, version="2")


def test_a_repository_of_the_hub_says_how_it_was_evaluated(pulled, tmp_path, monkeypatch):
    from safetensors.numpy import save

    weights, asked = tmp_path / "snapshot" / "model.safetensors", []
    weights.parent.mkdir()
    weights.write_bytes(save({name: np.ascontiguousarray(v) for name, v in shallow_tensors().items()}))
    config = {
        "input_size": [3, 96, 96],
        "mean": [0.4, 0.4, 0.4],
        "crop_pct": 0.75,
        "labels": [f"l{i}" for i in range(10)],
    }

    def configure(repository, file, **_):
        asked.append((repository, file))
        weights.with_name("config.json").write_text(json.dumps(config))

    monkeypatch.setattr(pulling, "download_from_hub", lambda *_, **__: weights)
    monkeypatch.setattr(pulling, "download_config", configure)
    source = {"kind": "hub", "repository": "me/net"}
    bundle = open_bundle(pulled(tiny_entry("", source=source, std=[9.0] * 3)).path)
    preprocessing, origins = bundle.manifest.preprocessing, bundle.manifest.provenance.origins
    assert asked == [("me/net", "model.safetensors")]
    assert (preprocessing.mean, preprocessing.std, preprocessing.crop_padding) == ((102,) * 3, (9,) * 3, 32)
    assert (origins["mean"], origins["std"], origins["labels"]) == ("config.json", "the catalogue", "config.json")
    assert read_labels(bundle)[3].label == "l3"


class TestTwice:
    def test_the_same_bundle_is_there_already(self, pulled, url, server):
        first, second = pulled(tiny_entry(url)), pulled(tiny_entry(url))
        assert (first.new, second.new) == (True, False)
        assert first.path == second.path
        assert len(server.seen) == 1

    def test_another_version_needs_no_second_download(self, pulled, url, server):
        assert pulled(tiny_entry(url)).path.name == "1"
        assert pulled(tiny_entry(url), version="2").path.name == "2"
        assert len(server.seen) == 1

    def test_a_file_is_hashed_once_in_each_pull(self, pulled, url, archive, monkeypatch):
        hashed = []

        def note(file):
            hashed.append(file.name)
            return sha256_of(file)

        monkeypatch.setattr(pulling, "sha256_of", note)
        monkeypatch.setattr(bundling, "sha256_of", note)
        made = [pulled(tiny_entry(url), version=version).path for version in ("1", "2")]
        assert hashed == [f"{NAME}.tar.gz"] * 2
        first, second = (open_bundle(path).manifest.provenance.source_sha256 for path in made)
        assert first == second == sha256(archive)

    def test_another_bundle_is_kept(self, pulled, url, server, place):
        path = pulled(tiny_entry(url)).path
        before = (path / "manifest.json").read_bytes()
        other = tiny_entry(server.url("/other.tar.gz"))
        with pytest.raises(BundleError, match=f"{NAME}/1 exists already; choose another version"):
            pulled(other)
        assert (path / "manifest.json").read_bytes() == before
        assert len(server.seen) == 1, "known before anything is downloaded"

    def test_at_the_same_time(self, pulled, url, server, place):
        server.files[PATH].behaviours = [misbehave.broken_after(100_000)] * 2
        results, errors = [], []

        def run(version):
            try:
                results.append(pulled(tiny_entry(url), version=version))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(version,)) for version in ("1", "1", "2")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted((result.path.name, result.new) for result in results) == [("1", False), ("1", True), ("2", True)]
        for result in results:
            open_bundle(result.path)
        assert [seen.headers.get("range") for seen in server.seen] == [None, "bytes=100000-", "bytes=200000-"]


def test_two_checkpoints_for_the_same_place(pulled, server, archive, checkpoint_files, place):
    """Both are ready at the same time; one comes first."""
    urls = [server.add("/a.tar.gz", archive), server.add("/b.tar.gz", packed({**checkpoint_files, "more": b"x"}))]
    results, errors = [], []

    def run(url):
        try:
            results.append(pulled(tiny_entry(url)))
        except BundleError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.new for result in results] == [True]
    assert errors == [f"{NAME}/1 exists already; choose another version."]
    open_bundle(results[0].path)
    assert [path.name for path in place[0].iterdir() if path.is_dir()] == [NAME]


def test_no_room_to_unpack(pulled, server, place):
    """The archive is fine, so it stays in the cache. A limit of file sizes stands for a full disk."""
    url = server.add(PATH, packed({"model.ckpt.index": bytes(5_000_000)}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ImportFailed, match="File too large"):
            pulled(tiny_entry(url))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    nothing_but(place, f"{NAME}.tar.gz")


class TestChecksums:
    def test_the_first_pull_is_remembered(self, pulled, url, archive, place):
        pulled(tiny_entry(url))
        document = json.loads((place[0] / "checksums.json").read_text())
        assert document["schema_version"] == 1
        (key, known), *more = document["files"].items()
        assert more == []
        assert (key, known["sha256"], known["size"]) == (url, sha256(archive), len(archive))

    def test_and_enforced(self, pulled, url, server, archive, place, tmp_path):
        pulled(tiny_entry(url))
        server.files[PATH].content = other = packed({"other": b"x"})
        with pytest.raises(DownloadFailed) as caught:
            pulled(tiny_entry(url), version="2", cache=tmp_path / "empty")
        for part in (sha256(other), sha256(archive), "at its first pull", "--accept-changed", "It was deleted."):
            assert part in str(caught.value)
        assert files(tmp_path / "empty") == []
        assert Catalog(place[0]).versions(NAME) == ("1",)

    def test_unless_the_change_is_accepted(self, pulled, url, server, checkpoint_files, place):
        pulled(tiny_entry(url))
        server.files[PATH].content = changed = packed({**checkpoint_files, f"{NAME}/README": b"new"})
        path = pulled(tiny_entry(url), version="2", accept_changed=True).path
        assert open_bundle(path).manifest.provenance.source_sha256 == sha256(changed)
        assert Checksums(place[0]).known(url).sha256 == sha256(changed)

    def test_one_in_the_catalogue_holds_from_the_beginning(self, pulled, url, archive, place):
        with pytest.raises(DownloadFailed, match=f"has SHA-256 {sha256(archive)}, but the catalogue says {'0' * 64}"):
            pulled(tiny_entry(url, sha256="0" * 64))
        nothing_but(place)
        with pytest.raises(DownloadFailed, match="the catalogue says"):
            pulled(tiny_entry(url, sha256="0" * 64), accept_changed=True)
        assert pulled(tiny_entry(url, sha256=sha256(archive))).new

    def test_a_damaged_cache_is_noticed_and_renewed(self, pulled, url, server, place):
        pulled(tiny_entry(url))
        (cached,) = place[1].rglob("*.tar.gz")
        with cached.open("r+b") as file:
            file.seek(1000)
            file.write(b"tampered")
        assert pulled(tiny_entry(url), version="2").new
        assert len(server.seen) == 2

    def test_a_file_that_is_no_checkpoint_is_not_remembered(self, pulled, server, archive, place):
        url = server.add(PATH, packed({"README": b"come back later"}))
        with pytest.raises(ImportFailed, match=r"holds no TensorFlow checkpoint \(\*\.index\)\."):
            pulled(tiny_entry(url))
        nothing_but(place)
        server.files[PATH].content = archive
        assert pulled(tiny_entry(url)).new

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"schema_version": 2, "files": {}}', "has schema version 2, newer than 1"),
            ("{", "is not valid JSON"),
            ('{"files": {"a": {"sha256": "x", "size": 1}}}', "is not valid: files.a.sha256: "),
        ],
    )
    def test_a_record_that_cannot_be_understood(self, text, says, pulled, url, place):
        place[0].mkdir()
        (place[0] / "checksums.json").write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            pulled(tiny_entry(url))
        assert str(caught.value).startswith(f"checksums.json in the model store {says}")
        assert str(caught.value).endswith("Without it, every file counts as pulled for the first time.")
        assert (place[0] / "checksums.json").read_text() == text
        assert Catalog(place[0]).models() == ()

    def test_many_writers(self, tmp_path):
        def write(i):
            Checksums(tmp_path).remember(f"key {i}", sha256=f"{i:064x}", size=i)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(20):
            assert Checksums(tmp_path).known(f"key {i}").size == i
        assert files(tmp_path) == ["checksums.json"]


def test_a_mirror(pulled, url, server, archive, place):
    """The mirror has the file; the bundle says where it was published."""
    elsewhere = f"http://storage.invalid{PATH}"
    server.add(f"/mirror{PATH}", archive)
    path = pulled(tiny_entry(elsewhere), mirror=server.url("/mirror/")).path
    assert open_bundle(path).manifest.provenance.url == elsewhere
    assert list(json.loads((place[0] / "checksums.json").read_text())["files"]) == [elsewhere]


def member(name, **changes):
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def bomb():
    """30 MB of zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        info = tarfile.TarInfo("model.ckpt.data-00000-of-00001")
        info.size = 30 * 2**20
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


HOSTILE = {
    "traversal": lambda: packed({"../../evil.index": b"x"}),
    "traversal inside": lambda: packed({"a/../../evil.index": b"x"}),
    "absolute": lambda: packed({"/evil.index": b"x"}),
    "symlink": lambda: packed({}, member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "symlink, then a file through it": lambda: packed(
        {}, member("d", type=tarfile.SYMTYPE, linkname="/"), member("d/evil.index")
    ),
    "hardlink": lambda: packed({}, member("link.index", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
    "device": lambda: packed({}, member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "pipe": lambda: packed({}, member("pipe", type=tarfile.FIFOTYPE)),
    "thousands of members": lambda: packed({}, *(member(f"{i}") for i in range(2000))),
    "bomb": bomb,
    "no archive": lambda: b"<html>Not today</html>" * 100,
    "empty": lambda: b"",
    "truncated": lambda: packed({"model.ckpt.index": random.Random(0).randbytes(200_000)})[:-60_000],
    "two checkpoints": lambda: packed({"a.index": b"x", "b.index": b"x"}),
    "no TensorFlow checkpoint": lambda: packed({"model.ckpt.index": b"x" * 500}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives(kind, pulled, server, place, tmp_path):
    content = HOSTILE[kind]()
    url = server.add(PATH, content)
    limits = dataclasses.replace(QUICK, max_bytes=5 * 2**20)
    with pytest.raises(ImportFailed) as caught:
        pulled(tiny_entry(url), limits=limits)
    assert str(tmp_path) not in str(caught.value)
    nothing_but(place, *([f"{NAME}.tar.gz"] if kind == "no TensorFlow checkpoint" else []))
    assert list(tmp_path.rglob("*evil*")) == []


class TestRefusedBeforeAnythingIsDownloaded:
    @pytest.fixture(autouse=True)
    def _nothing_happens(self, server, place):
        yield
        assert server.seen == []
        assert files(place[0]) == []

    @pytest.mark.parametrize("name", ["../evil", "A", "", "a/b"])
    def test_names(self, name, pulled, url):
        with pytest.raises(InvalidParameter, match="can't be a model's name"):
            pulled(tiny_entry(url), name=name)

    @pytest.mark.parametrize("version", ["0", "one", "", "-1", "../1"])
    def test_versions(self, version, pulled, url):
        with pytest.raises(InvalidParameter, match="can't be a model's version"):
            pulled(tiny_entry(url), version=version)

    @pytest.mark.parametrize(
        "architecture",
        [
            {"name": "resnet50"},
            {"name": "efficientnet-condconv-b0-4e", "head_filters": 4},
            {"name": "efficientnet-condconv-b0-4e", "num_classes": "ten"},
            {"name": "efficientnet-condconv-b0-4e", "width_coefficient": 1e9},
        ],
    )
    def test_architectures(self, architecture, pulled, url):
        with pytest.raises(ConfigurationError, match="rchitecture"):
            pulled(tiny_entry(url, architecture=architecture))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"architecture": {"name": "efficientnet-condconv-b0-8e", "width_coefficient": 0.25, "num_classes": 10}},
            "mis",
        ),
        ({"labels": [{"index": 0, "label": "only one"}]}, "the catalogue names 1 class, but the weights have 10"),
        ({"labels": [{"index": 5, "label": "five"}]}, "must name the classes 0, 1, 2"),
    ],
)
def test_a_catalogue_that_does_not_fit_the_file(changes, says, pulled, url, place):
    with pytest.raises(ImportFailed, match=says):
        pulled(tiny_entry(url, **changes))
    nothing_but(place, f"{NAME}.tar.gz")
