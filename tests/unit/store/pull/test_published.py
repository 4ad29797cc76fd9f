import re
from pathlib import Path

import pytest

from condconv_serve.errors import ConfigurationError, DownloadFailed, ModelNotFound
from condconv_serve.nn import get_architecture
from condconv_serve.store.pull.published import MAX_BYTES, Checkpoint, read_catalogue
from tests.unit.store.pull.conftest import NAME, tiny_entry, write_catalogue

pytestmark = pytest.mark.tensorflow

URL = "https://weights.example.org/tiny.tar.gz"
HUB = {"kind": "hub", "repository": "timm/tf_efficientnet_cc_b0_4e.in1k"}


class TestThePublishedOnes:
    catalogue = read_catalogue()

    def test_all_six_are_there(self):
        assert [checkpoint.name for checkpoint in self.catalogue.checkpoints] == [
            "efficientnet-condconv-b0-4e",
            "efficientnet-condconv-b0-8e",
            "efficientnet-condconv-b0-8e-depth",
            "tf_efficientnet_cc_b0_4e",
            "tf_efficientnet_cc_b0_8e",
            "tf_efficientnet_cc_b1_8e",
        ]

    @pytest.mark.parametrize("checkpoint", catalogue.checkpoints, ids=lambda c: c.name)
    def test_each_fits_an_architecture_and_says_where_it_comes_from(self, checkpoint: Checkpoint):
        architecture = get_architecture(checkpoint.architecture.name, **checkpoint.architecture.overrides)
        assert architecture.num_classes == 1000
        assert checkpoint.labels == "imagenet-1k"
        assert checkpoint.licence == "Apache-2.0"
        assert checkpoint.source.page.startswith("https://")
        (accuracy,) = checkpoint.accuracy
        assert accuracy.transform == checkpoint.transform
        official = checkpoint.source.kind == "url"
        assert checkpoint.transform == ("official" if official else "pillow")
        level, deviation = (127, 128) if official else (127.5, 127.5)
        assert (checkpoint.mean, checkpoint.std) == ((level,) * 3, (deviation,) * 3)

    def test_unknown_names(self):
        with pytest.raises(ModelNotFound, match="has no checkpoint 'resnet'; it has: efficientnet-condconv-b0-4e, "):
            self.catalogue.find("resnet")


def test_a_catalogue_of_ones_own(tmp_path, server):
    file = write_catalogue(tmp_path / "own.json", tiny_entry(URL, size=7), tiny_entry(URL, name="other", source=HUB))
    catalogue = read_catalogue(str(file))
    tiny, other = catalogue.checkpoints
    assert catalogue.find(NAME) is tiny
    assert (tiny.size, tiny.sha256, tiny.source.key, tiny.source.page) == (7, None, URL, URL)
    assert other.source.key == "hub:timm/tf_efficientnet_cc_b0_4e.in1k@main/model.safetensors"
    assert other.source.page == "https://huggingface.co/timm/tf_efficientnet_cc_b0_4e.in1k"
    assert read_catalogue(server.add("/own.json", file.read_bytes())) == catalogue


def test_the_catalogue_in_the_documentation(tmp_path):
    page = (Path(__file__).parents[4] / "docs" / "models.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"checkpoints"' in block]
    (tmp_path / "own.json").write_text(text)
    checkpoint = read_catalogue(str(tmp_path / "own.json")).find("flowers")
    architecture = get_architecture(checkpoint.architecture.name, **checkpoint.architecture.overrides)
    assert architecture.num_classes == len(checkpoint.labels)


def refused(tmp_path, says, *entries, **changes):
    file = write_catalogue(tmp_path / "own.json", *entries, **changes)
    with pytest.raises(ConfigurationError) as caught:
        read_catalogue(str(file))
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_schema(version, tmp_path):
    says = f"own.json has schema version {version}, newer than 1, the newest one known here."
    refused(tmp_path, says, {"anything": "new"}, schema_version=version, more={})


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5])
def test_an_impossible_schema(version, tmp_path):
    refused(tmp_path, "own.json is not a valid catalogue: schema_version: ", schema_version=version)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd.tar.gz",
        "ftp://example.org/w.tar.gz",
        "javascript:alert(1)//.tar.gz",
        "w.tar.gz",
        "/srv/w.tar.gz",
        "https:///w.tar.gz",
        "https://example.org",
        "https://example.org/",
        "https://user:secret@example.org/w.tar.gz",
        "https://example.org/w.zip",
        "https://example.org/w.pkl",
        "https://example.org/w?name=.tar.gz",
        "https://example.org/a b.tar.gz",
        "https://example.org/..\\w.tar.gz",
        "https://example.org/w.tar.gz\n",
        "https://example.org/w\0.tar.gz",
        "https://example.org/\x1b[31m.tar.gz",
        "https://[::1/w.tar.gz",
        "",
        7,
    ],
)
def test_impossible_urls(url, tmp_path):
    refused(tmp_path, f"'{NAME}'.source.url.url: ", tiny_entry(url))


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("source.hub.repository", {"source": {**HUB, "repository": "../../etc"}}),
        ("source.hub.repository", {"source": {**HUB, "repository": "timm"}}),
        ("source.hub.repository", {"source": {**HUB, "repository": "a/b/c"}}),
        ("source.hub.file", {"source": {**HUB, "file": "../model.safetensors"}}),
        ("source.hub.file", {"source": {**HUB, "file": "pytorch_model.bin"}}),
        ("source.hub.file", {"source": {**HUB, "file": "/etc/x.safetensors"}}),
        ("source.hub.revision", {"source": {**HUB, "revision": "refs/../x"}}),
        ("source", {"source": {"kind": "rsync", "url": URL}}),
        ("source", {"source": URL}),
        ("sha256", {"sha256": "abc"}),
        ("sha256", {"sha256": "A" * 64}),
        ("size", {"size": 0}),
        ("size", {"size": -5}),
        ("transform", {"transform": "squash"}),
        ("labels", {"labels": "imagenet-21k"}),
        ("std", {"std": [0, 1, 1]}),
        ("mean", {"mean": [1, 1]}),
        ("accuracy.0.top1", {"accuracy": [{"dataset": "d", "images": 1, "transform": "pillow", "top1": 78.3}]}),
        ("run", {"run": "rm -rf /"}),
        ("licence", {"licence": None}),
        ("architecture", {"architecture": "efficientnet-b0"}),
    ],
)
def test_impossible_fields(place, changes, tmp_path):
    refused(tmp_path, f"own.json is not a valid catalogue: '{NAME}'.{place}", tiny_entry(URL, **changes))


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "Upper", "a" * 129, 5])
def test_impossible_names(name, tmp_path):
    refused(tmp_path, "name: ", tiny_entry(URL, name=name))


def test_a_name_twice(tmp_path):
    refused(tmp_path, f"named more than once: {NAME}", tiny_entry(URL), tiny_entry(URL))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", "checkpoints: []"])
def test_no_json(text, tmp_path):
    (tmp_path / "own.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=r"^own\.json is not valid JSON"):
        read_catalogue(str(tmp_path / "own.json"))


@pytest.mark.parametrize("text", ["[]", "null", '"x"', '{"checkpoints": 5}', '{"checkpoints": [5]}', "{}"])
def test_json_of_another_kind(text, tmp_path):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"^own\.json is not a valid catalogue: "):
        read_catalogue(str(tmp_path / "own.json"))


class TestWhatCannotBeRead:
    def test_no_file(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"absent\.json can't be read: No such file"):
            read_catalogue(str(tmp_path / "absent.json"))

    def test_a_directory(self, tmp_path):
        with pytest.raises(ConfigurationError, match="can't be read: Is a directory"):
            read_catalogue(str(tmp_path))

    def test_too_large(self, tmp_path, server):
        (tmp_path / "own.json").write_bytes(b" " * (MAX_BYTES + 1))
        with pytest.raises(ConfigurationError, match=f"has more than {MAX_BYTES} bytes"):
            read_catalogue(str(tmp_path / "own.json"))
        with pytest.raises(DownloadFailed, match=f"has more than {MAX_BYTES} bytes"):
            read_catalogue(server.add("/own.json", b" " * (MAX_BYTES + 1)))

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/own.json", "://x", "http://[/own.json"])
    def test_other_schemes(self, url):
        with pytest.raises(ConfigurationError, match=r"A catalogue is a file's path or an http\(s\) URL, not "):
            read_catalogue(url)

    def test_an_url_without_answer(self, server):
        with pytest.raises(DownloadFailed, match=r"/own\.json answers with status 404"):
            read_catalogue(server.url("/own.json"))
