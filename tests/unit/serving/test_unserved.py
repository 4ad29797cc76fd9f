"""What lies in the store but can't be answered: it is refused with the reason, and never by another version."""

import os
import shutil

import pytest

from condconv_serve.errors import ModelNotFound, ModelUnavailable, VersionNotFound
from condconv_serve.store.aliases import delete_alias, set_alias
from tests.unit.serving.models import Place


@pytest.fixture
def store(tmp_path):
    """Two versions; requests that name none should get the older one."""
    place = Place(tmp_path)
    for version in ("1", "2"):
        place.add("pear", version)
    set_alias(tmp_path, "pear", "default", {"1": 1})
    set_alias(tmp_path, "pear", "stable", {"1": 1})
    return tmp_path


def started(store, **options):
    place = Place(store, **options)
    place.follower.sync_now()
    return place


def refusal(place, *asked):
    with pytest.raises(ModelUnavailable) as refused:
        place.registry.get(*asked)
    assert refused.value.retry_after >= 1
    assert str(place.path) not in str(refused.value)
    with pytest.raises(ModelUnavailable):
        place.registry.lease(*asked)
    return str(refused.value)


def version_of(place, *asked):
    return place.registry.get(*asked).version


def unfollowed(place):
    return place.metrics.registry.get_sample_value("condconv_store_unfollowed", {"file": "pear/aliases.json"})


def cut(file):
    file.write_text(file.read_text()[: len(file.read_text()) // 2])


def become_a_directory(file):
    file.unlink()
    file.mkdir()


def become_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def point_at_itself(file):
    file.unlink()
    file.symlink_to(file.name)


def write(text):
    return lambda file: file.write_text(text)


UNREADABLE = [
    cut,
    become_a_directory,
    become_a_pipe,
    point_at_itself,
    write(""),
    write("[]"),
    write('{"schema_version": 2, "aliases": {}}'),
    write('{"aliases": {"default": "1"}}'),
    write('{"aliases": {"default": {"versions": {"latest": 1}}}}'),
    write('{"aliases": {"default": {"versions": {}}}}'),
    write(" " * (2**20 + 1)),
]


@pytest.mark.parametrize("damage", UNREADABLE)
def test_aliases_that_can_not_be_read_close_the_model(damage, store):
    damage(store / "pear" / "aliases.json")
    place = started(store)
    says = "pear: aliases.json "
    for asked in ((), ("pear",), ("pear", "default"), ("pear", "stable"), ("pear", "anything")):
        assert refusal(place, *asked).startswith(says)
    assert version_of(place, "pear", "2") == "2", "it was asked for by number"
    with pytest.raises(VersionNotFound):
        place.registry.get("pear", "7")
    assert place.health.unready().reason.startswith(says)
    assert unfollowed(place) == 1
    place.follower.sync_now()
    assert refusal(place).startswith(says), "it stays closed"
    if (store / "pear" / "aliases.json").is_dir():
        (store / "pear" / "aliases.json").rmdir()
    (store / "pear" / "aliases.json").unlink(missing_ok=True)
    set_alias(store, "pear", "default", {"1": 1})
    place.follower.sync_now()
    assert (version_of(place), place.health.unready(), unfollowed(place)) == ("1", None, 0)


def test_aliases_without_permission(store, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("condconv_serve.documents.read_limited", refuse)
    assert refusal(started(store, default="pear")) == (
        "pear: aliases.json can't be read. Requests must name a version of pear."
    )


@pytest.mark.parametrize("damage", [*UNREADABLE, os.unlink])
def test_while_it_serves_such_aliases_stay_as_they_were(damage, store, caplog):
    place = started(store)
    damage(store / "pear" / "aliases.json")
    for _ in range(3):
        place.follower.sync_now()
    assert [version_of(place, *asked) for asked in ((), ("pear", "stable"), ("pear", "2"))] == ["1", "1", "2"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("pear: aliases.json ")
    assert line.endswith("The aliases stay as they were, but not after a restart.")
    assert (place.health.unready(), place.health.problems(), unfollowed(place)) == (None, [line], 1)
    place.add("pear", "3")
    place.follower.sync_now()
    assert version_of(place) == "1", "what comes later takes nothing over"


def break_version(store, version="1"):
    with (store / "pear" / version / "weights.safetensors").open("ab") as file:
        file.write(b"x")


def remove_version(store, version="1"):
    shutil.rmtree(store / "pear" / version)


@pytest.mark.parametrize("split", [{"1": 1}, {"1": 1, "2": 99}])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_version, "Version 1 of pear can't be served: pear/1: weights.safetensors has"),
        (remove_version, "Version 1 is not in the model store."),
    ],
)
def test_an_alias_that_can_not_be_followed_from_the_start_is_refused(damage, reason, split, store):
    for alias in ("default", "stable"):
        set_alias(store, "pear", alias, split)
    set_alias(store, "pear", "new", {"2": 1})
    damage(store)
    place = started(store)
    for asked, alias in ((("pear",), "default"), (("pear", "default"), "default"), (("pear", "stable"), "stable")):
        assert refusal(place, *asked).startswith(f"Alias {alias} of pear can't be followed. {reason}")
    assert [version_of(place, "pear", asked) for asked in ("2", "new")] == ["2", "2"]
    assert "can't be followed" in place.health.unready().reason
    assert unfollowed(place) == 1
    shutil.rmtree(store / "pear" / "1", ignore_errors=True)
    place.add("pear", "1")
    place.follower.sync_now()
    assert (version_of(place) in split, place.health.unready(), unfollowed(place)) == (True, None, 0)


def test_another_alias_that_is_broken_refuses_only_its_own(store):
    set_alias(store, "pear", "stable", {"7": 1})
    place = started(store)
    assert version_of(place) == "1"
    assert refusal(place, "pear", "stable").endswith("Version 7 is not in the model store.")
    assert "Alias stable of pear" in place.health.unready().reason
    delete_alias(store, "pear", "stable")
    place.follower.sync_now()
    assert place.health.unready() is None
    with pytest.raises(VersionNotFound):
        place.registry.get("pear", "stable")


def test_while_it_serves_a_new_alias_at_nothing_moves_nobody(store, caplog):
    delete_alias(store, "pear", "default")
    place = started(store)
    assert version_of(place) == "2"
    for alias in ("default", "stable", "new"):
        set_alias(store, "pear", alias, {"7": 1})
    for _ in range(2):
        place.follower.sync_now()
    assert (version_of(place), version_of(place, "pear", "stable")) == ("2", "1")
    assert refusal(place, "pear", "new").startswith("Alias new of pear can't be followed. Version 7 is not")
    assert len(caplog.records) == 1
    assert (place.health.unready(), unfollowed(place)) == (None, 1)


async def test_aliases_whose_file_has_gone_can_be_changed_on_the_server(store):
    place = started(store)
    (store / "pear" / "aliases.json").unlink()
    place.follower.sync_now()
    await place.admin.delete_alias("pear", "stable")
    assert (store / "pear" / "aliases.json").exists()
    assert set(place.registry.aliases("pear")) == {"default"}
    assert (version_of(place), unfollowed(place)) == ("1", 0)
    (store / "pear" / "aliases.json").unlink()
    await place.admin.set_alias("pear", "stable", {"2": 1})
    assert version_of(started(store)) == "1", "the others are kept"
    (store / "pear" / "aliases.json").unlink()
    assert (await place.admin.set_alias("pear", "default", {"2": 1})).previous == {"1": 1}
    (store / "pear" / "aliases.json").unlink()
    assert (await place.admin.roll_back("pear", "default")).versions == {"1": 1}
    place.follower.close()


def test_what_failed_is_refused_with_the_reason(store):
    place = Place(store)
    place.add("apple", "1")
    place.add("apple", "2")
    for version in ("1", "2"):
        (store / "apple" / version / "labels.json").write_text("[]")
    place.follower.sync_now()
    for asked in (("apple",), ("apple", "2"), ("apple", "default")):
        assert refusal(place, *asked).startswith("Version 2 of apple can't be served: apple/2: labels.json has 2 bytes")
    assert refusal(place, "apple", "1").startswith("Version 1 of apple can't be served")
    with pytest.raises(ModelNotFound):
        place.registry.get("apple", "7")
    with pytest.raises(ModelNotFound):
        place.registry.get("plum")
    shutil.rmtree(store / "apple")
    place.follower.sync_now()
    with pytest.raises(ModelNotFound):
        place.registry.get("apple")


def test_an_unexpected_failure_is_not_told_to_callers(store):
    place = Place(store)
    place.broken.add("2")
    place.follower.sync_now()
    assert version_of(place) == "1"
    assert refusal(place, "pear", "2") == (
        "Version 2 of pear can't be served: It could not be loaded; the log says why."
    )


def test_a_version_that_is_not_wanted_is_not_there_for_callers(store):
    place = started(store)
    place.add("pear", "3")
    place.follower.sync_now()
    with pytest.raises(VersionNotFound, match=r"served are: 1, 3, default, stable\."):
        place.registry.get("pear", "2")


def test_what_is_still_loading_is_refused_for_a_moment(store):
    """At the start all are known before the first is loaded, and the default model comes first."""
    place, seen = Place(store, default=None, at_start=("apple", "pear")), []
    place.add("apple", "1")
    place.while_loading = lambda: seen.append((dict(place.registry.models()), *refusals()))

    def refusals():
        asked = [("apple",), ("apple", "1"), ("apple", "stable")]
        asked += [("pear",), ("pear", "stable")] if len(seen) < 2 else []
        return [refusal(place, *each) for each in asked], place.health.unready().reason

    place.follower.sync_now()
    assert [list(models) for models, *_ in seen] == [[], ["pear"], ["pear"]]
    assert set(seen[0][1]) == {
        "Model apple is still loading.",
        "Version 1 of apple is still loading.",
        "Model pear is still loading.",
    }
    assert seen[1][1][3] == "Model pear is still loading.", "its aliases are not in force yet, so nobody gets version 2"
    assert all("still loading" in unready for *_, unready in seen)
    assert (version_of(place), version_of(place, "apple"), place.health.unready()) == ("1", "1", None)


def test_a_version_that_comes_later_is_refused_until_it_serves(store):
    place, seen = started(store), []
    place.add("pear", "3")
    place.add("plum", "1")
    place.while_loading = lambda: seen.append([version_of(place), place.health.unready()])
    place.while_waiting = lambda: seen.append(refusal(place, *(("plum",) if len(seen) > 1 else ("pear", "3"))))
    place.follower.sync_now()
    assert seen == [
        "Version 3 of pear is still loading.",
        ["1", None],
        "Model plum is still loading.",
        ["1", None],
    ]
    assert (version_of(place, "pear", "3"), version_of(place, "plum")) == ("3", "1")


def test_files_that_are_being_copied_count_as_loading(store):
    place = started(store)
    card = place.add("pear", "3") / "MODEL_CARD.md"
    place.while_waiting = lambda: card.write_text(card.read_text() + "more")
    place.follower.sync_now()
    assert refusal(place, "pear", "3") == "Version 3 of pear is still loading."
    assert version_of(place) == "1"


class TestReadiness:
    """Which models it needs."""

    def test_all_that_are_there_at_the_start(self, store):
        place = Place(store, at_start=("apple", "pear"))
        (place.add("apple", "1") / "labels.json").write_text("[]")
        place.follower.sync_now()
        assert version_of(place) == "1", "the default model answers all the same"
        assert place.health.unready().reason.startswith("Version 1 of apple can't be served")
        shutil.rmtree(store / "apple")
        place.follower.sync_now()
        assert place.health.unready() is None, "somebody has taken it away"

    def test_not_what_comes_later(self, store, caplog):
        caplog.set_level("INFO")
        place = started(store)
        (place.add("apple", "1") / "labels.json").write_text("[]")
        place.follower.sync_now()
        assert place.health.unready() is None
        assert [problem.split(":")[0] for problem in place.health.problems()] == ["Version 1 of apple can't be served"]
        assert [r.getMessage() for r in caplog.records if r.name.endswith("store_health")] == ["ready"]

    def test_those_that_are_asked_for(self, store, caplog):
        caplog.set_level("INFO")
        place = Place(store, at_start=("apple", "pear"), ready_models=("pear", "plum"))
        (place.add("apple", "1") / "labels.json").write_text("[]")
        place.follower.sync_now()
        assert place.health.unready().reason == "Model plum is needed, but is not in the model store."
        place.add("plum", "1")
        place.follower.sync_now()
        assert place.health.unready() is None
        assert [r.getMessage() for r in caplog.records if r.name.endswith("store_health")] == [
            "not ready: Model plum is needed, but is not in the model store.",
            "ready",
        ]

    async def test_not_what_an_operator_has_unloaded(self, store):
        place = Place(store, at_start=("apple", "pear"))
        place.add("apple", "1")
        place.follower.sync_now()
        await place.admin.unload("apple", "1")
        await place.follower.sync()
        assert place.health.unready() is None
        with pytest.raises(ModelNotFound):
            place.registry.get("apple")
        place.follower.close()

    def test_a_model_that_can_not_be_read(self, store, monkeypatch):
        from condconv_serve.store import Catalog

        find, hidden = Catalog.versions, ["apple"]

        def unreadable(self, model):
            if model in hidden:
                raise PermissionError(13, "Permission denied")
            return find(self, model)

        place = Place(store, at_start=("apple", "pear"))
        place.add("apple", "1")
        monkeypatch.setattr(Catalog, "versions", unreadable)
        place.follower.sync_now()
        assert refusal(place, "apple") == "Model apple can't be read in the model store."
        assert place.health.unready().reason == "Model apple can't be read in the model store."
        hidden.clear()
        place.follower.sync_now()
        assert (version_of(place, "apple"), place.health.unready()) == ("1", None)
        hidden.append("apple")
        place.follower.sync_now()
        assert version_of(place, "apple") == "1", "it is served from memory"
