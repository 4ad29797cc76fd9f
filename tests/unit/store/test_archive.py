"""Archives as they are published, and as an attacker would make them."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc

import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.store.archive import extract_tar

LIMITS = {"max_bytes": 10**6, "max_members": 20}
FILES = {"model/checkpoint": b"model.ckpt", "model/model.ckpt.index": os.urandom(3000), "model/empty": b""}


def member(name="model/file", **attributes):
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def tar(*members, files=FILES):
    """Uncompressed: the files, then odd members, each alone or with its content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            archive.addfile(member(name, size=len(content)), io.BytesIO(content))
        for info in members:
            archive.addfile(*info) if isinstance(info, tuple) else archive.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def unpack(tmp_path):
    def run(data, **limits):
        file = tmp_path / "in.tar.gz"
        file.write_bytes(data)
        extract_tar(file, tmp_path / "out" / "new", **LIMITS | limits)
        return {
            str(path.relative_to(tmp_path / "out" / "new")): path.read_bytes()
            for path in (tmp_path / "out" / "new").rglob("*")
            if path.is_file()
        }

    return run


@pytest.fixture
def refused(unpack, tmp_path):
    def check(data, says, **limits):
        with pytest.raises(ImportFailed) as caught:
            unpack(data, **limits)
        assert says in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert {path.name for path in tmp_path.rglob("*")} == {"in.tar.gz", "out"}

    return check


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_files_come_out_as_they_went_in(compress, unpack):
    assert unpack(compress(tar())) == FILES


def test_directories_and_leading_dots(unpack, tmp_path):
    directory = member("./model/", type=tarfile.DIRTYPE, mode=0)
    found = unpack(gzip.compress(tar(directory, (member("./model/b", size=1, mode=0), io.BytesIO(b"b")))))
    assert found == FILES | {"model/b": b"b"}


def test_modes_and_owners_are_not_restored(unpack, tmp_path):
    unpack(tar((member("model/tool", size=1, mode=0o6777, uid=12345), io.BytesIO(b"x"))))
    status = (tmp_path / "out" / "new" / "model" / "tool").stat()
    assert status.st_mode & 0o7111 == 0
    assert status.st_uid == os.getuid()


def test_what_the_system_tar_writes(unpack, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ("long" * 50)).write_bytes(b"long name")
    subprocess.run(["tar", "czf", "made.tgz", "model"], cwd=tmp_path, check=True)
    assert unpack((tmp_path / "made.tgz").read_bytes()) == {f"model/{'long' * 50}": b"long name"}


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "model/../../evil", "..", "C:\\evil", "..\\evil", "model/../model/evil"]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_names_that_lead_out(name, kind, refused):
    refused(gzip.compress(tar(member(name, type=kind))), "a name that may lead out")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"9"],
)
def test_what_is_no_file(kind, refused):
    refused(gzip.compress(tar(member(type=kind, linkname="/etc/passwd"))), "neither a file nor a directory")


def test_a_link_is_never_followed(refused, tmp_path):
    through = (member("link/evil", size=4), io.BytesIO(b"evil"))
    refused(tar(member("link", type=tarfile.SYMTYPE, linkname=str(tmp_path)), through), "'link', which is neither")


def test_sparse_files(refused):
    header = bytearray(member("sparse", size=512).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 10**9
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(bytes(header) + bytes(512 * 3), "neither a file nor a directory")


def test_the_same_name_twice(refused):
    refused(tar((member("model/checkpoint", size=1), io.BytesIO(b"x"))), "File exists")


def test_a_file_in_the_place_of_a_directory(refused):
    refused(tar((member("model/checkpoint/below", size=1), io.BytesIO(b"x"))), "no archive that can be unpacked")


def test_as_many_members_as_allowed(unpack):
    assert len(unpack(tar(files={f"f{i}": b"" for i in range(20)}))) == 20


def test_more_members_than_allowed(refused):
    refused(tar(files={f"f{i}": b"" for i in range(21)}), "more than 20 files")


def test_more_bytes_than_allowed(refused):
    refused(gzip.compress(tar(files={"a": bytes(600), "b": bytes(600)})), "more than 1000 bytes", max_bytes=1000)


def test_a_bomb_is_not_unpacked(refused):
    """A gigabyte of zeros, as the data that a member announces, is refused before any of it is decompressed."""
    head = member("bomb", size=10**9).tobuf()
    refused(gzip.compress(head + bytes(10**7)), "unpacks to more than 1000000 bytes")


def test_a_bomb_behind_the_end_mark(refused):
    refused(gzip.compress(tar() + bytes(10**7)), "unpacks to more than its headers say")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_bomb_in_the_headers(kind, refused):
    """Headers are read into memory as a whole, so their size must be looked at before."""
    bomb = gzip.compress(member("bomb", type=kind, size=10**8).tobuf() + bytes(10**8), compresslevel=1)
    tracemalloc.start()
    try:
        refused(bomb, "unpacks to more than its headers say")
        assert tracemalloc.get_traced_memory()[1] < 2 * 10**6 + len(bomb)
    finally:
        tracemalloc.stop()


def test_truncated_anywhere(unpack, tmp_path):
    """Whatever the length, either all files come out or the archive is refused."""
    whole = tar()
    zipped = gzip.compress(whole)
    cuts = [whole[:n] for n in range(0, len(whole) - 1, 256)] + [zipped[:n] for n in range(0, len(zipped), 64)]
    refusals = 0
    for data in cuts:
        try:
            assert unpack(data) == FILES
        except ImportFailed:
            refusals += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert refusals > len(cuts) // 2
    assert refusals >= len(zipped) // 64  # gzip's checksum comes last


def test_damaged_anywhere(unpack, tmp_path):
    """A flipped bit in a compressed archive never gives other files."""
    zipped = gzip.compress(tar())
    for position in range(10, len(zipped), 37):
        damaged = bytearray(zipped)
        damaged[position] ^= 0x10
        with pytest.raises(ImportFailed):
            unpack(bytes(damaged))


@pytest.mark.parametrize(
    "data", [b"", b"\x1f\x8b", b"no archive at all" * 100, gzip.compress(b"", mtime=0), b"PK\x03\x04"]
)
def test_what_is_no_archive(data, refused):
    refused(data, "in.tar.gz is no archive that can be unpacked")


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(ImportFailed, match=r"^absent\.tar\.gz is no archive that can be unpacked: No such file"):
        extract_tar(tmp_path / "absent.tar.gz", tmp_path / "out", **LIMITS)
    assert not (tmp_path / "out").exists()


def test_what_lies_there_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "in.tar").write_bytes(tar())
    with pytest.raises(ImportFailed, match="out, which is not empty"):
        extract_tar(tmp_path / "in.tar", tmp_path / "out", **LIMITS)
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "in.tar").write_bytes(tar())
    extract_tar(tmp_path / "in.tar", tmp_path / "out", **LIMITS)
    assert (tmp_path / "out" / "model" / "checkpoint").read_bytes() == b"model.ckpt"
