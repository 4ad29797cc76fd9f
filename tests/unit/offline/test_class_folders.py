"""Which folders are which classes."""

import pytest

from condconv_serve.domain import Label
from condconv_serve.errors import DataSetError
from condconv_serve.offline.class_folders import find_classes

LABELS = [
    Label(0, "tench, Tinca tinca", "n01440764"),
    Label(1, "giant panda", "n02510455"),
    Label(2, "crane"),
    Label(3, "crane"),
    Label(4, "7"),
    Label(5, "Ümläut"),
    Label(6, "jack-o'-lantern"),
    Label(7, "cup"),
]


@pytest.fixture
def data(tmp_path):
    """A data set with an image in each of these folders."""

    def make(*folders):
        for folder in folders:
            (tmp_path / "data" / folder).mkdir(parents=True)
            (tmp_path / "data" / folder / "a.jpg").touch()
        return tmp_path / "data"

    return make


@pytest.mark.parametrize(
    ("folder", "index"),
    [
        ("tench, Tinca tinca", 0),
        ("tench", 0),
        ("n01440764", 0),
        ("giant_panda", 1),
        ("Giant Panda", 1),
        ("7", 4),  # its label comes before the index
        ("5", 5),
        ("Ümläut", 5),
        ("jack-o'-lantern", 6),
        ("3", 3),
    ],
)
def test_names(folder, index, data):
    found = find_classes(data(folder), LABELS, skip_unknown=False)
    assert [(file.name, number) for file, number in found.files] == [("a.jpg", index)]
    assert (found.skipped, found.notes) == ((), ())


def test_two_folders_of_one_class(data):
    found = find_classes(data("cup", "Cup"), LABELS, skip_unknown=False)
    assert [index for _, index in found.files] == [7, 7]


def test_all_below_a_folder_belongs_to_it(data):
    directory = data("cup/more", ".hidden")
    (directory / "cup" / "notes.txt").touch()
    (directory / "loose.jpg").touch()
    found = find_classes(directory, LABELS, skip_unknown=False)
    assert [(file.relative_to(directory).as_posix(), index) for file, index in found.files] == [("cup/more/a.jpg", 7)]
    assert found.notes == (
        f"{directory / 'cup'}: left out: 1 file that has no image's suffix (.txt): notes.txt.",
        f"{directory}: left out: 1 image beside the folders.",
    )


def test_unknown_folders(data):
    directory = data("cup", "cupp", "zzz", "8", "-1")
    with pytest.raises(DataSetError) as caught:
        find_classes(directory, LABELS, skip_unknown=False)
    assert str(caught.value) == (
        f"{directory}: 4 of 5 folders are no class of the model: -1, 8, cupp (is it 'cup'?), zzz. Call a folder by a "
        "class's label (such as tench, Tinca tinca, giant panda, crane), its WordNet id or its index. --skip-unknown "
        "leaves such folders out."
    )
    found = find_classes(directory, LABELS, skip_unknown=True)
    assert len(found.files) == 1
    assert found.skipped == ("-1", "8", "cupp", "zzz")
    assert found.notes == (f"{directory}: left out: 4 folders that are no class: -1, 8, cupp, zzz.",)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (["crane"], r"crane: several classes are called so \(2, 3\)\. Call the folder by the index"),
        (["x", "y"], "2 of 2 folders are no class of the model: x, y"),
        ([], "data is no folder that can be read: No such file or directory"),
    ],
)
def test_no_data_set(folders, says, data, tmp_path):
    data(*folders)
    with pytest.raises(DataSetError, match=says):
        find_classes(tmp_path / "data", LABELS, skip_unknown=True)


def test_folders_without_images(tmp_path):
    (tmp_path / "cup").mkdir()
    with pytest.raises(DataSetError, match="no image in any of its 1 class folders"):
        find_classes(tmp_path, LABELS, skip_unknown=False)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.jpg").touch()
    found = find_classes(tmp_path, LABELS, skip_unknown=False)
    assert found.notes == (f"{tmp_path / 'cup'} is empty.",)


def test_images_without_folders(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataSetError, match="holds no folder, but 1 image of no class"):
        find_classes(tmp_path, LABELS, skip_unknown=False)
