import os

import numpy as np
import pytest
from PIL import Image

from condconv_serve.errors import DataSetError
from condconv_serve.imaging import decode, transform
from condconv_serve.training.dataset import Rows, find_labelled, find_unlabelled, named, read_rows, split
from tests.unit.training.samples import PREPROCESSING, write_images

pytestmark = pytest.mark.tensorflow

LIMIT = {"max_pixels": 10_000_000}


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "data", {"red": 4, "blue": 3})


def test_classes_are_folders(data):
    (data / "red" / "deeper").mkdir()
    (data / "red" / "000.png").rename(data / "red" / "deeper" / "000.PNG")
    (data / "red" / "notes.txt").write_text("not an image")
    (data / "red" / ".hidden.png").write_text("not an image")
    (data / ".cache").mkdir()
    found = find_labelled(data)
    assert found.names == ("blue", "red")
    assert found.classes.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [file.name for file in found.files] == [*(f"00{i}.png" for i in (0, 1, 2, 1, 2, 3)), "000.PNG"]
    assert len(find_unlabelled(data).files) == 7


def test_known_classes_keep_their_order(data):
    found = find_labelled(data, names=["red", "green", "blue"])
    assert found.classes.tolist() == [0] * 4 + [2] * 3
    with pytest.raises(DataSetError, match=r"holds classes that the training data hasn't: red\. Known are blue"):
        find_labelled(data, names=["blue"])


def test_the_fingerprint_follows_the_files(data):
    before = find_labelled(data).fingerprint()
    assert find_labelled(data).fingerprint() == before
    (data / "red" / "000.png").write_bytes(b"other")
    assert find_labelled(data).fingerprint() != before


def empty_folder(data):
    (data / "green").mkdir()


def without(*names):
    def change(data):
        for name in names:
            for file in (data / name).iterdir():
                file.unlink()
            (data / name).rmdir()

    return change


def loose(data):
    without("blue", "red")(data)
    Image.new("RGB", (4, 4)).save(data / "x.jpg")


def of_boxes(data):
    without("blue", "red")(data)
    (data / "train.json").touch()


def of_voc(data):
    (data / "Annotations").mkdir()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_boxes, "--task detection"),
        (of_voc, "--task detection"),
        (empty_folder, "no image in the class folder green"),
        (without("blue"), "holds 1 class folder;"),
        (without("blue", "red"), "holds no class folders;"),
        (loose, "holds no class folders, but 1 images that lie beside them"),
    ],
)
def test_unusable_folders(change, says, data):
    change(data)
    with pytest.raises(DataSetError, match=says):
        find_labelled(data)


def test_no_directory(tmp_path):
    (tmp_path / "file").touch()
    for find in (find_labelled, find_unlabelled):
        for name in ("absent", "file"):
            with pytest.raises(DataSetError, match="is no directory that can be read"):
                find(tmp_path / name)
    with pytest.raises(DataSetError, match="holds no image"):
        find_unlabelled(tmp_path)


def test_rows_are_what_the_server_computes(data, tmp_path):
    images, told = find_labelled(data), []
    rows = read_rows(images, PREPROCESSING, tmp_path / "run", progress=lambda *done: told.append(done), **LIMIT)
    assert isinstance(rows.rows, np.memmap)
    assert told == [(i, 7) for i in range(1, 8)]
    for file, row in zip(images.files, rows.rows, strict=True):
        np.testing.assert_array_equal(row, transform(decode(file.read_bytes(), **LIMIT), PREPROCESSING))
    images.files[0].unlink()
    again = read_rows(images, PREPROCESSING, tmp_path / "run", **LIMIT)
    np.testing.assert_array_equal(again.rows, rows.rows, "decoded only once")


def test_unreadable_images_are_left_out_and_named(data, tmp_path):
    (data / "red" / "001.png").write_bytes((data / "red" / "001.png").read_bytes()[:100])
    (data / "blue" / "000.png").write_text("text")
    (data / "blue" / "big.png").write_bytes(_png(5000))
    rows = read_rows(find_labelled(data), PREPROCESSING, tmp_path / "run", **LIMIT)
    assert rows.classes.tolist() == [0, 0, 1, 1, 1]
    assert rows.kept.tolist() == [1, 2, 4, 6, 7]
    assert [path.name for path, _ in rows.failures] == ["000.png", "big.png", "001.png"]
    text = "\n".join(named(rows.failures))
    assert "000.png: These bytes are no image" in text
    assert "big.png: The image has 5000 x 5000 pixels" in text
    again = read_rows(find_labelled(data), PREPROCESSING, tmp_path / "run", **LIMIT)
    assert again.failures == rows.failures


@pytest.mark.parametrize("name", [b"\xe9", b" ", b"a\nb", b"\xc2\x9b2J"])
def test_a_class_that_no_label_can_be_named_after(name, data):
    os.rename(data / "red", os.fsencode(data) + b"/" + name)
    with pytest.raises(DataSetError, match="no class can be named after the folder"):
        find_labelled(data)


def test_links_that_lead_nowhere(data, tmp_path):
    (data / "red" / "gone.png").symlink_to(tmp_path / "absent.png")
    found = find_labelled(data)
    assert found.fingerprint() == find_labelled(data).fingerprint()
    rows = read_rows(found, PREPROCESSING, tmp_path / "run", **LIMIT)
    assert named(rows.failures) == [f"{data}/red/gone.png: it can't be read: No such file or directory."]
    (data / "green").symlink_to(tmp_path / "absent")
    with pytest.raises(DataSetError, match="the link green leads nowhere"):
        find_labelled(data)


def _png(side):
    from io import BytesIO

    buffer = BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_nothing_readable(data, tmp_path):
    for file in (data / "blue").iterdir():
        file.write_text("text")
    with pytest.raises(DataSetError, match="No image of the class folder blue can be read"):
        read_rows(find_labelled(data), PREPROCESSING, tmp_path / "a", **LIMIT)
    for file in (data / "red").iterdir():
        file.write_text("text")
    with pytest.raises(DataSetError, match="None of the 7 images can be read"):
        read_rows(find_labelled(data), PREPROCESSING, tmp_path / "b", **LIMIT)


def rows_of(*counts):
    classes = np.repeat(np.arange(len(counts)), counts)
    return Rows(np.zeros((len(classes), 1, 1, 3), np.uint8), np.arange(len(classes)), classes, ())


@pytest.mark.parametrize(
    ("counts", "held"),
    [((10, 5), (2, 1)), ((100, 100), (20, 20)), ((2, 2), (1, 1)), ((1, 9), (0, 2)), ((3, 1), (1, 0))],
)
def test_every_class_is_split(counts, held):
    rows = rows_of(*counts)
    training, validation = split(rows, share=0.2, seed=1)
    assert sorted([*training, *validation]) == list(range(sum(counts)))
    assert tuple(np.bincount(rows.classes[validation], minlength=2)) == held
    again = split(rows, share=0.2, seed=1)
    assert [part.tolist() for part in again] == [training.tolist(), validation.tolist()]
    assert max(counts) < 5 or any((split(rows, share=0.2, seed=s)[1] != validation).any() for s in range(2, 9))


def test_nothing_to_validate_with():
    with pytest.raises(DataSetError, match="No images are left for validation"):
        split(rows_of(1, 1), share=0.2, seed=0)
