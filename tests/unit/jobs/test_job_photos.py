"""The photos of a job: folders that hold odd things, or go away."""

import os
import shutil

import pytest

from condconv_serve.inputs.folders import LeftOut
from condconv_serve.jobs.photos import Photos, Shard


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(20):
        (tmp_path / "photos" / f"{number:02}.jpg").touch()
    return tmp_path / "photos"


def test_a_link_that_cannot_be_looked_up_hides_no_other_photo(folder):
    """As one into a folder that is forbidden, or on a server that is away."""
    for number in range(20):
        (folder / f"link-{number}.jpg").symlink_to("x" * 300)
    (folder / "circle.jpg").symlink_to("circle.jpg")
    photos = Photos(["photos"])
    assert sorted(photo.path for photo in photos) == [f"photos/{number:02}.jpg" for number in range(20)]
    assert photos.left_out.describe().startswith("21 links that lead nowhere: ")


def test_a_folder_that_has_gone_is_no_photo(folder):
    photos = Photos(["photos"])
    shutil.rmtree(folder)
    assert list(photos) == []
    assert photos.left_out.describe() == "1 folder that can't be read: ."
    assert photos.left_out.unreadable


def test_a_file_that_has_gone_is_still_asked_about(folder):
    photos = Photos(["photos/03.jpg"])
    (folder / "03.jpg").unlink()
    assert [(photo.path, photo.size) for photo in photos] == [("photos/03.jpg", None)]


def test_what_is_given_twice_is_one_photo(folder):
    given = ["photos/03.jpg", "./photos/03.jpg", "photos/0*.jpg", "photos", "photos/", os.path.join(".", "photos")]
    found = [photo.path for photo in Photos(given)]
    assert len(found) == len(set(found)) == 20


def test_which_photos_are_asked_about_again(folder):
    photos = Photos(["photos", "photos/00.jpg"])
    assert "photos/07.jpg" in photos
    assert "photos/more/a.jpg" in photos
    assert "photos-2/a.jpg" not in photos
    half = Photos(["photos"], Shard(1, 2))
    found = {photo.path for photo in half}
    assert {path for path in (f"photos/{number:02}.jpg" for number in range(20)) if path in half} == found


def test_whether_other_shares_have_photos(folder):
    (photo,) = (photo for photo in Photos(["photos/00.jpg"]))
    (empty,) = {1, 2} - {number for number in (1, 2) if photo.path in Shard(number, 2)}
    share = Photos(["photos/00.jpg"], Shard(empty, 2))
    assert list(share.paths()) == []
    assert share.others_have_some()
    for path in folder.iterdir():
        path.unlink()
    assert not Photos(["photos"], Shard(1, 2)).others_have_some()


def test_folders_that_can_be_read_are_not_told(folder):
    photos = Photos(["photos"])
    assert list(photos.paths(left_out := LeftOut()))
    assert not left_out.unreadable
