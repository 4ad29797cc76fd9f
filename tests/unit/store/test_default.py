"""The default model: stored, never guessed from names."""

import json
import os
import shutil
import threading

import pytest

from condconv_serve.errors import BundleError, ModelNotFound, NoDefaultModel, StoreNotWritable
from condconv_serve.store import Catalog, write_bundle
from condconv_serve.store.default import find_default, read_default, set_default
from tests.unit.store.samples import STORE, new_bundle


def add(store, name, version="1"):
    return write_bundle(store, new_bundle(name=name, version=version))


def found(store):
    return find_default(store, Catalog(store).models())


def store_without(tmp_path, *names):
    """A store that somebody has copied together, with no default."""
    for name in names:
        add(tmp_path, name)
    (tmp_path / "default.json").unlink()
    return tmp_path


def test_the_store_that_ships_names_its_default():
    assert read_default(STORE) == "efficientnet-lite0-condconv-4e"
    assert found(STORE).chosen


def test_the_first_model_is_the_default_whatever_comes_later(tmp_path):
    store = tmp_path / "new" / "store"
    for name, version in (("pear", "1"), ("apple", "1"), ("pear", "2"), ("zebra", "7")):
        add(store, name, version)
        assert (read_default(store), found(store).name) == ("pear", "pear")
    assert json.loads((store / "default.json").read_text()) == {"schema_version": 1, "model": "pear"}


def test_the_only_model_of_a_store_stays_its_default(tmp_path):
    """It was so before anything was stored."""
    store = store_without(tmp_path, "pear")
    assert (found(store).name, found(store).chosen) == ("pear", False)
    assert "it is the only one" in found(store).reason
    add(store, "apple")
    assert (read_default(store), found(store).chosen) == ("pear", True)


def test_nothing_is_guessed_from_names(tmp_path):
    store = store_without(tmp_path, "pear", "apple")
    with pytest.raises(NoDefaultModel, match=r"holds: apple, pear\..*condconv models default NAME"):
        found(store).demand()
    add(store, "aardvark")
    assert read_default(store) is None
    assert found(store).name is None
    set_default(store, "pear")
    assert found(store).demand() == "pear"


def test_only_a_model_that_is_there_becomes_the_default(tmp_path):
    add(tmp_path, "pear")
    for name in ("apple", "pear/1", "../pear", "", "default.json"):
        with pytest.raises(ModelNotFound, match=r"there are: pear\."):
            set_default(tmp_path, name)
    assert read_default(tmp_path) == "pear"
    with pytest.raises(BundleError, match="is no directory"):
        set_default(tmp_path / "absent", "pear")


def test_a_default_that_has_gone_is_not_replaced(tmp_path):
    for name in ("pear", "apple"):
        add(tmp_path, name)
    shutil.rmtree(tmp_path / "pear")
    assert found(tmp_path).name is None
    assert "The default model pear is not in the model store; there are: apple." in found(tmp_path).reason
    add(tmp_path, "plum")
    assert read_default(tmp_path) == "pear"
    shutil.rmtree(tmp_path / "apple")
    shutil.rmtree(tmp_path / "plum")
    add(tmp_path, "plum")
    assert read_default(tmp_path) == "plum", "the store was empty"


def become_a_directory(file):
    file.unlink()
    file.mkdir()


def become_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_text(file.read_text()[:20]), r"default\.json is not valid JSON"),
        (lambda file: file.write_text(""), r"default\.json is not valid JSON"),
        (lambda file: file.write_bytes(b"\xff\xfe"), r"default\.json is not valid JSON"),
        (lambda file: file.write_text('["pear"]'), r"default\.json is not valid"),
        (lambda file: file.write_text('{"model": ["pear"]}'), r"default\.json is not valid: model"),
        (lambda file: file.write_text('{"model": "../pear"}'), r"default\.json is not valid: model"),
        (lambda file: file.write_text('{"schema_version": 2, "model": "pear"}'), "schema version 2, newer"),
        (lambda file: file.write_text(" " * (2**20 + 1)), "has more than 1048576 bytes"),
        (become_a_directory, "is no ordinary file"),
        (become_a_pipe, "is no ordinary file"),
    ],
)
def test_a_damaged_default_is_none_even_if_there_is_but_one_model(damage, says, tmp_path):
    add(tmp_path, "pear")
    damage(tmp_path / "default.json")
    with pytest.raises(NoDefaultModel, match=rf"{says}.*condconv models default NAME"):
        found(tmp_path).demand()
    assert str(tmp_path) not in found(tmp_path).reason
    add(tmp_path, "apple")  # which doesn't repair it with a guess
    assert found(tmp_path).name is None


def test_setting_it_repairs_it(tmp_path):
    add(tmp_path, "pear")
    (tmp_path / "default.json").write_text("{")
    set_default(tmp_path, "pear")
    assert found(tmp_path).demand() == "pear"


def test_a_store_that_can_not_be_written(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    add(tmp_path, "pear")
    monkeypatch.setattr("condconv_serve.store.default.write_whole", refuse)
    with pytest.raises(StoreNotWritable, match=r"can't be written to the model store: Read-only file system\.$"):
        set_default(tmp_path, "pear")
    (tmp_path / "default.json").unlink()
    assert add(tmp_path, "apple").is_dir(), "the bundle is there all the same"
    assert "the default model can't be stored: Read-only file system" in caplog.text


def test_two_first_models_at_once(tmp_path):
    names = [f"model-{number}" for number in range(8)]
    barrier, chosen = threading.Barrier(len(names)), set()

    def work(name):
        barrier.wait()
        add(tmp_path, name)
        chosen.add(read_default(tmp_path))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen - {None} == {read_default(tmp_path)} <= set(names), "it never changes"
    assert Catalog(tmp_path).models() == tuple(names)


def test_no_model_takes_the_name_of_a_file_of_the_store(tmp_path):
    for name in ("default.json", "checksums.json"):
        with pytest.raises(BundleError, match=r"keeps files of its own under names such as"):
            add(tmp_path, name)
    assert list(tmp_path.iterdir()) == []
