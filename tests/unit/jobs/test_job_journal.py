"""The journal: what it says when its file is damaged or its disk is full, and what is kept then."""

import os
import sqlite3

import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.jobs.journal import Entry, Journal, journal_of
from condconv_serve.jobs.photos import Photo


def entry(number, answer="x"):
    return Entry(photo=Photo(f"photos/{number:05}.jpg", 1, 2), answer={"label": answer})


@pytest.fixture
def output(tmp_path):
    """An output whose journal has a thousand entries."""
    output = tmp_path / "out.jsonl"
    with Journal(output) as journal:
        journal.begin({"question": "predict"})
        journal.put(entry(number, "x" * 200) for number in range(1000))
    return output


def test_a_full_disk_is_told_and_earlier_answers_stay(output):
    with Journal(output) as journal:
        (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ConfigurationError, match=r"out\.jsonl\.job can't be read or written: .*full"):
            journal.put(entry(number, "y" * 5000) for number in range(2000, 2100))
        assert len(journal) == 1000
        journal.put([entry(0, "z")])
    with Journal(output) as journal:
        assert next(iter(journal)).answer == {"label": "z"}


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_a_journal_that_is_cut_off_is_told_and_can_be_begun_anew(output, keep):
    file = journal_of(output)
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(int(size * keep))
    with pytest.raises(ConfigurationError, match="--restart"), Journal(output) as journal:
        assert list(journal)
    with Journal(output, restart=True) as journal:
        assert journal.head is None
        journal.begin({"question": "predict"})
        journal.put([entry(1)])
        assert list(journal) == [entry(1)]


def test_a_damaged_page_does_not_hinder_a_restart(output):
    file = journal_of(output)
    data = bytearray(file.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    file.write_bytes(data)
    with Journal(output, restart=True) as journal:
        journal.put([entry(1)])
        assert list(journal) == [entry(1)]


def test_nothing_of_a_journal_that_is_removed_is_found_again(tmp_path):
    output = tmp_path / "out.jsonl"
    with Journal(output) as journal:
        for rest in ("-journal", "-wal", "-shm"):
            journal_of(output).with_name(f"out.jsonl.job{rest}").touch()
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_journal_of_a_name_that_is_no_utf_8(tmp_path):
    output = tmp_path / "caf\udce9.jsonl"
    with Journal(output) as journal:
        journal.put([entry(1)])
        with pytest.raises(ConfigurationError, match=r"caf\\xe9\.jsonl now"), Journal(output):
            pass
    with Journal(output) as journal:
        assert len(journal) == 1
    assert sqlite3.threadsafety


@pytest.mark.parametrize("seconds", [10_413_792_000, -10_413_792_000], ids=["the year 2300", "the year 1640"])
def test_times_that_64_bits_cannot_hold(seconds, tmp_path, monkeypatch):
    """In nanoseconds; where a file system has such times. One such photo must not stop the others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"a")
    os.utime("a.jpg", (seconds, seconds))
    photo = Photo.at("a.jpg")
    with Journal(tmp_path / "out.jsonl") as journal:
        assert journal.known(photo) == (False, None)
        journal.put([Entry(photo=photo, answer={})])
        assert journal.known(photo) == (True, None)
        (entry,) = journal
    assert entry.photo == photo
    assert -(2**63) <= photo.mtime_ns < 2**63, "Parquet takes no more either"
