import pytest

from condconv_serve.errors import BundleError, InvalidParameter, ModelNotFound, VersionNotFound
from condconv_serve.store import Catalog, write_bundle
from condconv_serve.store.aliases import set_alias
from tests.unit.store.samples import new_bundle


@pytest.fixture
def store(tmp_path):
    """A store of two models, and much that is none. The catalog looks at places only, not into the manifests."""
    for place in ("apple/1", "apple/10", "apple/9", "b2.net_x-y/3"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "manifest.json").touch()
    for junk in (
        ".writing-abc/apple/2",
        ".hidden/1",
        "Upper/1",
        "with space/1",
        "-dash/1",
        "apple/01",
        "apple/0",
        "apple/-2",
        "apple/1.5",
        "apple/latest",
        "apple/.11",
        "apple/١٢",
        "apple/1" + "0" * 18,
    ):
        (tmp_path / junk).mkdir(parents=True)
        (tmp_path / junk / "manifest.json").touch()
    (tmp_path / "apple" / "11").mkdir()  # no manifest (yet)
    (tmp_path / "apple" / "12").touch()
    (tmp_path / "no-versions").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "file").touch()
    return tmp_path


def test_only_bundles_are_listed_versions_in_the_order_of_numbers(store):
    catalog = Catalog(store)
    assert catalog.models() == ("apple", "b2.net_x-y")
    assert catalog.versions("apple") == ("1", "9", "10")
    assert [str(path.relative_to(store)) for path in catalog] == ["apple/1", "apple/9", "apple/10", "b2.net_x-y/3"]


@pytest.mark.parametrize(
    ("model", "version", "place"),
    [("apple", None, "apple/10"), ("apple", "9", "apple/9"), ("b2.net_x-y", None, "b2.net_x-y/3")],
)
def test_find(model, version, place, store):
    assert Catalog(store).find(model, version) == store / place


@pytest.mark.parametrize(
    ("given", "place"),
    [("apple", "apple/10"), ("apple/10", "apple/10"), ("apple/9", "apple/9"), ("apple/1", "apple/1")],
)
def test_find_named(given, place, store):
    assert Catalog(store).find_named(given) == store / place


def test_a_name_means_what_a_server_answers_with(store):
    set_alias(store, "apple", "stable", {"1": 10, "9": 90})
    assert Catalog(store).find_named("apple/stable") == store / "apple" / "9"
    assert Catalog(store).find_named("apple") == store / "apple" / "10"
    set_alias(store, "apple", "default", {"1": 1})
    assert Catalog(store).find_named("apple") == Catalog(store).find_named("apple/default") == store / "apple" / "1"
    with pytest.raises(VersionNotFound, match=r"no version 'canary'; there are: 1, 9, 10, default, stable\."):
        Catalog(store).find_named("apple/canary")
    set_alias(store, "apple", "default", {"77": 1})
    with pytest.raises(VersionNotFound, match="no version '77'"):
        Catalog(store).find_named("apple")
    (store / "apple" / "aliases.json").write_text("{")
    with pytest.raises(BundleError, match=r"apple: aliases\.json is not valid JSON"):
        Catalog(store).find_named("apple")
    assert Catalog(store).find_named("apple/9") == store / "apple" / "9"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("pear", ModelNotFound),
        ("", InvalidParameter),
        ("/1", InvalidParameter),
        ("apple/", InvalidParameter),
        ("apple/1/", InvalidParameter),
        ("apple/2", VersionNotFound),
    ],
)
def test_names_of_nothing(given, error, store):
    with pytest.raises(error):
        Catalog(store).find_named(given)


def test_a_version_where_the_name_alone_is_wanted(store):
    with pytest.raises(
        ModelNotFound, match=r"'apple/1' in the store; .* Give the name alone here, without a version\.$"
    ):
        Catalog(store).find("apple/1")


@pytest.mark.parametrize("version", ["2", "11", "12", "01", "0", "../apple/1", "1/", "", "latest"])
def test_unknown_versions(version, store):
    with pytest.raises(VersionNotFound) as caught:
        Catalog(store).find("apple", version)
    assert str(caught.value) == f"Model apple has no version {version!r}; there are: 1, 9, 10."


@pytest.mark.parametrize(
    "model",
    [
        "pear",
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "apple\n",
        "apple\0",
        "no-versions",
        "file",
        ".hidden",
        "Upper",
        "x" * 200,
        "/etc",
    ],
)
def test_unknown_models(model, store):
    (store.parent / "x" / "1").mkdir(parents=True, exist_ok=True)
    (store.parent / "x" / "1" / "manifest.json").touch()
    (store / "a" / "b" / "1").mkdir(parents=True)
    (store / "a" / "b" / "1" / "manifest.json").touch()
    catalog = Catalog(store)
    assert catalog.versions(model) == ()
    with pytest.raises(ModelNotFound) as caught:
        catalog.find(model)
    assert str(caught.value) == f"There is no model {model!r} in the store; there are: apple, b2.net_x-y."
    assert str(store) not in str(caught.value)


def test_new_bundles_are_seen(tmp_path):
    catalog = Catalog(tmp_path)
    assert catalog.models() == ()
    with pytest.raises(ModelNotFound, match=r"there are: none\.$"):
        catalog.find("small")
    path = write_bundle(tmp_path, new_bundle(version="7"))
    assert catalog.find("small") == path


@pytest.mark.parametrize("name", ["absent", "file"])
def test_no_store(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is no directory"):
        Catalog(tmp_path / name)
