"""Which model gets the requests that name none, while the server runs and after a restart."""

import shutil

import pytest

from condconv_serve.errors import ModelUnavailable, NoDefaultModel
from condconv_serve.store import Catalog
from condconv_serve.store.default import set_default
from tests.unit.serving.models import Place


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path, default=None)
    place.add("pear", "1")
    place.follower.sync_now()
    yield place
    place.follower.close()


def restarted(place, **options):
    """Another replica of the same store, started now."""
    other = Place(place.path, default=None, **options)
    other.follower.sync_now()
    return other


def default_of(place):
    try:
        return place.registry.get().name
    except NoDefaultModel:
        return None
    except ModelUnavailable:
        return "refused"


def unfollowed(place):
    return place.metrics.registry.get_sample_value("condconv_store_unfollowed", {"file": "default.json"})


def shown(place):
    return [
        sample.labels["model"]
        for metric in place.metrics.registry.collect()
        if metric.name == "condconv_default_model"
        for sample in metric.samples
    ]


def test_an_added_model_changes_nothing_for_old_and_new_replicas(place, caplog):
    caplog.set_level("INFO")
    place.add("apple", "1")
    place.follower.sync_now()
    assert place.served("apple") == ["1"]
    assert default_of(place) == default_of(restarted(place)) == "pear"
    assert "the default model is pear, since default.json in the model store says so" in caplog.text
    assert (shown(place), unfollowed(place)) == (["pear"], 0)


def test_another_default_is_followed_without_a_restart(place, caplog):
    caplog.set_level("INFO")
    place.add("apple", "1")
    set_default(place.path, "apple")
    place.follower.sync_now()
    assert default_of(place) == default_of(restarted(place)) == "apple"
    assert "the default model is apple, since default.json in the model store says so; it was pear" in caplog.text
    assert shown(place) == ["apple"]


def test_another_default_takes_over_once_it_is_served(place, caplog):
    """Requests that name no model are answered all the time."""
    seen = []
    place.while_loading = lambda: seen.append((default_of(place), unfollowed(place)))
    path = place.add("apple", "1")
    set_default(place.path, "apple")
    labels = (path / "labels.json").read_text()
    (path / "labels.json").write_text("[]")
    for _ in range(2):
        place.follower.sync_now()
    assert (default_of(place), unfollowed(place), default_of(restarted(place))) == ("pear", 1, "refused")
    (problem,) = [text for text in place.health.problems() if "new default" in text]
    assert problem.startswith("The new default model can't be served: Version 1 of apple can't be served: apple/1: lab")
    assert problem.endswith("The default model is still pear, but not after a restart.")
    (path / "labels.json").write_text(labels)
    place.follower.sync_now()
    assert seen == [("pear", 1)]
    assert (default_of(place), unfollowed(place)) == ("apple", 0)


def test_what_an_operator_asks_for_goes_first(place):
    place.add("apple", "1")
    other = restarted(place, asked="apple")
    set_default(place.path, "pear")
    other.follower.sync_now()
    assert default_of(other) == "apple"


def cut(place):
    (place.path / "default.json").write_text('{"schema_version": 1, "mod')


def remove(place):
    (place.path / "default.json").unlink()


def point_at_nothing(place):
    (place.path / "default.json").write_text('{"model": "plum"}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "default.json is not valid JSON"),
        (remove, "No default model is set, and the model store holds: apple, pear."),
        (point_at_nothing, "The default model plum is not in the model store; there are: apple, pear."),
    ],
)
def test_what_can_not_be_followed_changes_nothing_until_a_restart(damage, says, place, caplog):
    place.add("apple", "1")
    place.follower.sync_now()
    damage(place)
    for _ in range(3):
        place.follower.sync_now()
    assert (default_of(place), unfollowed(place), shown(place)) == ("pear", 1, ["pear"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert says in line
    assert line.endswith("The default model is still pear, but not after a restart.")
    assert (place.health.unready(), place.health.problems()) == (None, [line])
    other = restarted(place)
    with pytest.raises(NoDefaultModel) as refused:
        other.registry.get()
    assert says in str(refused.value)
    assert refused.value.retry_after
    assert other.registry.get("apple").name == "apple", "named models are served"
    assert (unfollowed(other), shown(other), other.health.problems()) == (1, [], [str(refused.value)])
    unready = other.health.unready()
    assert (unready is None) if damage is remove else (unready.reason == str(refused.value)), "nobody chose one yet"
    set_default(place.path, "apple")
    for each in (place, other):
        each.follower.sync_now()
        assert (default_of(each), unfollowed(each), shown(each)) == ("apple", 0, ["apple"])


def test_a_copied_model_does_not_take_over_nor_push_out(place):
    """Nothing stored the default, since nobody imported."""
    (place.path / "default.json").unlink()
    only = restarted(place)
    assert (default_of(only), unfollowed(only)) == ("pear", 0)
    place.add("apple", "1")
    (place.path / "default.json").unlink()
    only.follower.sync_now()
    assert (default_of(only), unfollowed(only)) == ("pear", 1)
    assert default_of(restarted(place)) is None
    shutil.rmtree(place.path / "pear")
    only.follower.sync_now()
    assert (default_of(only), unfollowed(only)) == ("pear", 1), "it is served from memory"


def test_a_broken_other_model_leaves_the_default_alone(place):
    (place.add("apple", "1") / "weights.safetensors").write_bytes(b"nothing")
    other = restarted(place)
    assert default_of(other) == "pear"
    assert other.states("apple") == {"1": "incomplete"}


def test_a_model_that_can_not_be_read_counts_among_several(place, monkeypatch):
    """So nobody takes the other one for the only one."""
    place.add("apple", "1")
    (place.path / "default.json").unlink()
    versions = Catalog.versions

    def hidden(self, model):
        if model == "apple":
            raise PermissionError(13, "Permission denied")
        return versions(self, model)

    monkeypatch.setattr(Catalog, "versions", hidden)
    assert default_of(restarted(place)) is None
