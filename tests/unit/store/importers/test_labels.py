import json

import pytest

from condconv_serve.domain import Label
from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.labels import (
    IMAGENET_CLASSES,
    check_labels,
    check_names,
    imagenet_labels,
    read_labels_file,
)

pytestmark = pytest.mark.tensorflow

PLAIN = [Label(0, "tench"), Label(1, "gold fish")]
FULL = [Label(0, "tench", "n01440764"), Label(1, "gold fish", "n01443537")]


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.json", json.dumps(["tench", "gold fish"]), PLAIN),
        ("l.json", json.dumps([{"index": 0, "label": "tench"}, {"index": 1, "label": "gold fish"}]), PLAIN),
        ("l.json", json.dumps({"1": "gold fish", "0": "tench"}), PLAIN),
        ("l.json", json.dumps({"0": ["n01440764", "tench"], "1": ["n01443537", "gold fish"]}), FULL),
        ("l.txt", "tench\ngold fish", PLAIN),
        ("l.txt", "tench\r\n  gold fish \r\n\r\n\n", PLAIN),
        ("labels", "\ufefftench\ngold fish\n", PLAIN),
        ("synsets.txt", "n01440764 tench\nn01443537\tgold fish\n", FULL),
        ("l.txt", "n01440764 tench\nn0 gold\n", [Label(0, "n01440764 tench"), Label(1, "n0 gold")]),
        ("l.txt", "Ümläut\n", [Label(0, "Ümläut")]),
        ("l.JSON", json.dumps(["tench", "gold fish"]), PLAIN),
        ("l.txt", "tench\rgold fish\r", PLAIN),
        ("l.txt", "a\u2028b\n", [Label(0, "a\u2028b")]),
    ],
)
def test_formats(name, text, labels, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_labels_file(tmp_path / name) == labels


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("l.txt", b"tench\n\n\ngold\n", "must name a class in every line; empty are: 2, 3."),
        ("l.txt", b"", "must name the classes 0, 1, 2, ... in order."),
        ("l.txt", b"\n\n", "must name the classes 0, 1, 2, ... in order."),
        ("l.txt", b"\xff\xfe", "can't be read: it is not UTF-8."),
        ("l.json", b"[]", "must name the classes 0, 1, 2, ... in order."),
        ("l.json", b'{"tench": "0"}', "is no list of labels (index, label, synset) or of names: "),
        ("l.json", b'{"1": "tench"}', "must name the classes 0, 1, 2, ... in order."),
        ("l.json", b"tench", "is no list of labels (index, label, synset) or of names: "),
        ("l.json", b'{"0": "tench", "00": "gold"}', "is no list of labels (index, label, synset) or of names: "),
        ("l.json", b'["tench", ""]', "must name every class, without control characters; not so are: 1."),
        (
            "l.json",
            b'[{"index": 0, "label": " "}]',
            "must name every class, without control characters; not so are: 0.",
        ),
        ("l.txt", b"tench\x0bgold\n", "must name every class, without control characters; not so are: 0."),
        ("l.json", b'[{"index": 1, "label": "a"}]', "must name the classes 0, 1, 2, ... in order."),
    ],
)
def test_refusals(name, data, says, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImportFailed) as caught:
        read_labels_file(tmp_path / name)
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_half_a_surrogate_pair():
    """JSON outside of labels files may hold one."""
    with pytest.raises(ImportFailed, match=r"not so are: 0\.$"):
        check_names([Label(0, "\ud800")], origin="config.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImportFailed, match=r"^absent\.txt can't be read: No such file or directory\.$"):
        read_labels_file(tmp_path / "absent.txt")


def test_classes_of_imagenet():
    labels = imagenet_labels()
    assert [label.index for label in labels] == list(range(IMAGENET_CLASSES))
    assert labels[388] == Label(388, "giant panda", "n02510455")


def test_a_background_class_is_suspected():
    with pytest.raises(
        ImportFailed, match=r"l\.txt names 1000 classes, but the weights have 1001\. They may have a back"
    ):
        check_labels(imagenet_labels(), 1001, origin="l.txt")
