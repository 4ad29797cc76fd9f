import errno
import fcntl
import json
import os
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.errors import AliasNotFound, BundleError, InvalidParameter, StoreNotWritable
from condconv_serve.store.aliases import Alias, delete_alias, mirrors_of, read_aliases, roll_back, set_alias


@pytest.fixture
def store(tmp_path):
    (tmp_path / "pear").mkdir()
    return tmp_path


def files_in(directory):
    """All files but the lock's, which filelock leaves there or not."""
    return {file.name for file in directory.iterdir()} - {".aliases.lock"}


def test_an_alias_is_kept(store):
    assert read_aliases(store, "pear") == {}
    set_alias(store, "pear", "stable", {"1": 1})
    set_alias(store, "pear", "canary", {"1": 90, "2": 10})
    assert read_aliases(store, "pear") == {
        "stable": Alias(versions={"1": 1}),
        "canary": Alias(versions={"1": 90, "2": 10}),
    }
    assert files_in(store / "pear") == {"aliases.json"}


def test_rolling_back_and_forth(store):
    set_alias(store, "pear", "stable", {"1": 1})
    with pytest.raises(InvalidParameter, match="never pointed anywhere else"):
        roll_back(store, "pear", "stable")
    set_alias(store, "pear", "stable", {"2": 1})
    set_alias(store, "pear", "stable", {"2": 1})  # no change, so nothing to go back from
    assert roll_back(store, "pear", "stable").versions == {"1": 1}
    assert roll_back(store, "pear", "stable").versions == {"2": 1}


def test_deleting(store):
    set_alias(store, "pear", "stable", {"1": 1})
    delete_alias(store, "pear", "stable")
    assert read_aliases(store, "pear") == {}
    for change in (delete_alias, roll_back):
        with pytest.raises(AliasNotFound, match=r"no alias 'stable'; there are: none\."):
            change(store, "pear", "stable")


@pytest.mark.parametrize("name", ["", "1", "Stable", "../x", "a/b", "a" * 65, "ä"])
def test_bad_names(name, store):
    with pytest.raises(InvalidParameter, match="An alias can't be called"):
        set_alias(store, "pear", name, {"1": 1})
    assert list((store / "pear").iterdir()) == []


@pytest.mark.parametrize(
    "versions",
    [
        *({"1": weight} for weight in (0, -1, 1.5, True, "1", 2_000_000)),
        *({version: 1} for version in ("0", "01", "v1", "../1")),
        {},
        {str(version): 1 for version in range(1, 18)},
    ],
)
def test_bad_splits(versions, store):
    with pytest.raises(InvalidParameter, match="points at 1 to 16 versions"):
        set_alias(store, "pear", "stable", versions)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "is not valid: document"),
        (b'{"schema_version": 2, "aliases": {}}', "has schema version 2, newer than 1"),
        (b'{"aliases": {"stable": {"versions": {"x": 1}}}}', "is not valid: aliases.stable.versions"),
        (b'{"aliases": {"1": {"versions": {"1": 1}}}}', "is not valid: aliases.1"),
        (b'{"aliases": {}, "extra": 1}', "is not valid: extra"),
        (b'{"aliases": {}}' + b" " * 2**20, "has more than 1048576 bytes"),
    ],
)
def test_a_damaged_file_is_refused_and_left(content, says, store):
    file = store / "pear" / "aliases.json"
    file.write_bytes(content)
    for act in (lambda: read_aliases(store, "pear"), lambda: set_alias(store, "pear", "stable", {"1": 1})):
        with pytest.raises(BundleError, match=f"pear: aliases.json {says}"):
            act()
    assert file.read_bytes() == content


def test_a_pipe_is_not_read(store):
    os.mkfifo(store / "pear" / "aliases.json")
    with pytest.raises(BundleError, match=r"pear: aliases.json is no ordinary file"):
        read_aliases(store, "pear")


def test_on_a_network_file_system(store, monkeypatch):
    flock = fcntl.flock

    def only_what_is_open_for_writing(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", only_what_is_open_for_writing)
    set_alias(store, "pear", "stable", {"1": 1})
    assert read_aliases(store, "pear")["stable"].versions == {"1": 1}


def test_nowhere_to_write(store):
    with pytest.raises(StoreNotWritable, match="The aliases of plum can't be written"):
        set_alias(store, "plum", "stable", {"1": 1})
    assert not (store / "plum").exists()


def test_a_failed_write_leaves_the_old_file(store, monkeypatch):
    set_alias(store, "pear", "stable", {"1": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreNotWritable, match="No space left on device"):
        set_alias(store, "pear", "stable", {"2": 1})
    assert read_aliases(store, "pear")["stable"].versions == {"1": 1}
    assert files_in(store / "pear") == {"aliases.json"}


def test_changes_at_the_same_time_are_all_kept(store):
    writers = [
        threading.Thread(target=lambda i=i: set_alias(store, "pear", f"alias-{i}", {str(i + 1): 1})) for i in range(16)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_aliases(store, "pear")) == 16
    assert json.loads((store / "pear" / "aliases.json").read_text())["schema_version"] == 1


@given(st.dictionaries(st.integers(1, 99).map(str), st.integers(1, 1000), min_size=1, max_size=16), st.text("ab €😀"))
@settings(deadline=None)
def test_a_key_always_gets_the_same_version(versions, key):
    alias = Alias(versions=versions)
    assert alias.choose(key) in versions
    assert alias.choose(key) == Alias(versions=dict(reversed(versions.items()))).choose(key)


def test_shares_are_those_of_the_weights():
    weights = {"1": 50, "2": 30, "10": 20}
    chosen = Counter(Alias(versions=weights).choose(f"request-{i}") for i in range(20_000))
    for version, weight in weights.items():
        assert chosen[version] / 200 == pytest.approx(weight, abs=1.5)


@given(
    st.dictionaries(st.integers(2, 99).map(str), st.integers(1, 100), max_size=4),
    st.integers(1, 100),
    st.text("ab €😀"),
)
@settings(deadline=None, max_examples=30)
def test_all_requests_of_a_key_are_mirrored_or_none(mirror, more, key):
    alias = Alias(versions={"1": 1}, mirror=mirror)
    chosen = alias.mirrors(key)
    assert set(chosen) <= set(mirror)
    assert chosen == Alias(versions={"1": 3, "7": 1}, mirror=mirror).mirrors(key)  # whatever the split does
    assert {version for version, percent in mirror.items() if percent == 100} <= set(chosen)
    raised = Alias(versions={"1": 1}, mirror={v: max(percent, more) for v, percent in mirror.items()})
    assert set(chosen) <= set(raised.mirrors(key))


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_mirrored_shares_are_the_percentages_and_independent_of_the_split(percent):
    alias = Alias(versions={"1": 50, "2": 50}, mirror={"3": percent, "4": percent})
    keys = [f"request-{i}" for i in range(8_000)]
    for version in ("3", "4"):
        for split in ("1", "2"):
            of_split = [key for key in keys if alias.choose(key) == split]
            share = sum(version in alias.mirrors(key) for key in of_split) / len(of_split) * 100
            assert share == pytest.approx(percent, abs=3)
    both = sum(alias.mirrors(key) == ("3", "4") for key in keys) / len(keys) * 100
    assert both == pytest.approx(percent**2 / 100, abs=1.5)


def test_which_requests_are_mirrored():
    aliases = {"default": Alias(versions={"1": 1}, mirror={"2": 100}), "plain": Alias(versions={"1": 1})}
    assert mirrors_of(aliases, None, "key") == mirrors_of(aliases, "default", "key") == ("2",)
    assert mirrors_of(aliases, "plain", "key") == mirrors_of(aliases, "1", "key") == mirrors_of({}, None, "key") == ()
    assert mirrors_of(aliases, None, None) == ()


def test_a_mirror_is_kept_until_the_alias_is_set_or_rolled_back(store):
    set_alias(store, "pear", "stable", {"1": 1})
    set_alias(store, "pear", "stable", {"2": 1}, mirror={"3": 10})
    assert read_aliases(store, "pear")["stable"] == Alias(versions={"2": 1}, mirror={"3": 10}, previous={"1": 1})
    assert set_alias(store, "pear", "stable", {"2": 1}) == Alias(versions={"2": 1}, previous={"1": 1})
    set_alias(store, "pear", "stable", {"2": 1}, mirror={"3": 100})
    assert roll_back(store, "pear", "stable") == Alias(versions={"1": 1}, previous={"2": 1})


@pytest.mark.parametrize(
    ("mirror", "says"),
    [
        *(({"2": percent}, "percentages from 1 to 100") for percent in (0, -1, 1.5, True, "1", 101)),
        ({"x": 1}, "a whole number from 1"),
        ({str(version): 1 for version in range(2, 7)}, "up to 4 versions"),
        ({"1": 1}, "Version 1 would be mirrored to itself"),
    ],
)
def test_bad_mirrors(mirror, says, store):
    with pytest.raises(InvalidParameter, match=says):
        set_alias(store, "pear", "stable", {"1": 1}, mirror=mirror)
    set_alias(store, "pear", "stable", {"1": 1, "2": 1}, mirror={"1": 5})  # those who get 2 compare with 1


def test_without_a_key_it_is_the_version_with_the_most_weight():
    assert Alias(versions={"1": 3, "2": 5, "10": 1}).choose() == "2"
    assert Alias(versions={"2": 5, "10": 5, "9": 5}).choose() == "10"


def test_more_weight_for_the_newest_takes_nobody_away_from_it():
    before, after = Alias(versions={"1": 9, "2": 1}), Alias(versions={"1": 5, "2": 5})
    keys = [str(i) for i in range(2000)]
    canaries = {key for key in keys if before.choose(key) == "2"}
    assert canaries < {key for key in keys if after.choose(key) == "2"}
