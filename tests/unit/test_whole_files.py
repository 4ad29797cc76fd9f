import os

import pytest

from condconv_serve import files
from condconv_serve.files import FileTooLarge, NoOrdinaryFile, read_limited, replacing, write_whole


def test_a_file_is_made_and_replaced(tmp_path):
    file = tmp_path / "aliases.json"
    write_whole(file, "läuft")
    assert file.read_bytes() == "läuft".encode()
    write_whole(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("before", "after"), [(None, 0o644), (0o664, 0o664), (0o600, 0o600)])
def test_permissions_stay(before, after, tmp_path):
    file = tmp_path / "file"
    if before is not None:
        file.touch()
        file.chmod(before)
    write_whole(file, "new")
    assert file.stat().st_mode & 0o777 == after


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_what_fails_leaves_the_old_file_alone(error, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(type(error)), replacing(file) as scratch:  # noqa: PT012
        scratch.write_text("half")
        raise error
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_content_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    file, steps = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        steps.append("directory" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        fsync(handle)

    def note_replace(source, target):
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_whole(file, "new")
    assert steps == ["file", "replace", "directory"]


def test_a_file_system_that_cannot_sync_directories(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(handle):
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", only_files)
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_who_is_alone_clears_what_killed_writers_have_left(tmp_path):
    left, others = tmp_path / ".file-abcdefgh", tmp_path / ".other-abcdefgh"
    left.touch()
    others.touch()
    write_whole(tmp_path / "file", "new")
    assert left.exists()
    write_whole(tmp_path / "file", "new", alone=True)
    assert sorted(tmp_path.iterdir()) == [others, tmp_path / "file"]


def test_a_file_is_read_up_to_its_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    assert read_limited(file, 4) == b"1234"
    with pytest.raises(FileTooLarge) as caught:
        read_limited(file, 3)
    assert (caught.value.size, caught.value.filename) == (4, str(file))
    file.write_bytes(b"")
    assert read_limited(file, 0) == b""


def test_a_link_is_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    assert read_limited(tmp_path / "link", 4) == b"1234"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_ordinary_file_is_not_read(make, tmp_path):
    make(tmp_path / "odd")
    with pytest.raises(NoOrdinaryFile, match="it is no ordinary file"):
        read_limited(tmp_path / "odd", 4)


@pytest.mark.parametrize("target", [None, "nowhere"])
def test_a_file_that_is_not_there(target, tmp_path):
    if target:
        (tmp_path / "file").symlink_to(target)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / "file", 4)
