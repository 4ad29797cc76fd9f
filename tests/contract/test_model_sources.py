"""The registry and the fakes in its place: models by name and version, leases, and copies that follow one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import ServedModel
from condconv_serve.errors import ModelNotFound, VersionNotFound
from condconv_serve.fronts.context import ServedModels
from condconv_serve.serving.registry import Registry
from condconv_serve.store import open_bundle, write_bundle
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FakeModels, load_shades
from tests.unit.store.samples import new_bundle

SERVED = (("pear", "1"), ("pear", "10"), ("pear", "9"), ("apple", "2"))


@dataclass
class Subject:
    """A source that serves `SERVED`, with pear for the default; `reload` puts a new copy in place of an old one."""

    models: ServedModels
    reload: Callable[[str, str], None]


def registry(store: Path) -> Subject:
    models = Registry(
        load_shades,
        default_model="pear",
        warm_up_sizes=(1,),
        streams=1,
        metrics=Metrics(CollectorRegistry()),
        release_memory=lambda: None,
    )
    bundles = {place: open_bundle(write_bundle(store, new_bundle(name=place[0], version=place[1]))) for place in SERVED}
    for bundle in bundles.values():
        models.load(bundle)

    def reload(name: str, version: str) -> None:
        models.load(bundles[name, version])

    return Subject(models, reload)


def fake(store: Path) -> Subject:
    made = {
        place: load_shades(open_bundle(write_bundle(store, new_bundle(name=place[0], version=place[1]))))
        for place in SERVED
    }
    models = FakeModels(*made.values())
    return Subject(models, lambda name, version: models.replace(replace(made[name, version])))


@pytest.fixture(params=[registry, fake])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    made: Subject = request.param(tmp_path)
    return made


def place_of(model: ServedModel) -> tuple[str, str]:
    return model.name, model.version


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((), ("pear", "10")),
        ((None, None), ("pear", "10")),
        ((None, "1"), ("pear", "1")),
        (("pear",), ("pear", "10")),
        (("pear", "9"), ("pear", "9")),
        (("apple",), ("apple", "2")),
    ],
)
def test_models_are_found(subject: Subject, asked: tuple[str | None, ...], found: tuple[str, str]) -> None:
    assert place_of(subject.models.get(*asked)) == found
    assert subject.models.get(*asked, key="somebody") is subject.models.get(*asked)
    with subject.models.lease(*asked) as leased:
        assert leased is subject.models.get(*asked)


def test_what_is_served(subject: Subject) -> None:
    assert subject.models.default_model == "pear"
    assert {(name, v) for name, versions in subject.models.models().items() for v in versions} == set(SERVED)
    assert subject.models.models()["apple"]["2"] is subject.models.get("apple")
    assert subject.models.aliases("pear") == {}


def test_unknown_models(subject: Subject) -> None:
    for ask in (subject.models.get, subject.models.lease):
        with pytest.raises(ModelNotFound, match=r"Model 'plum' is not served; served are: pear, apple\."):
            ask("plum")


def test_unknown_versions(subject: Subject) -> None:
    for ask in (subject.models.get, subject.models.lease):
        with pytest.raises(VersionNotFound, match=r"Model apple is not served in version '7'; served are: 2\."):
            ask("apple", "7")


def test_a_copy_that_follows_another_is_another_model(subject: Subject) -> None:
    before = subject.models.get("apple")
    subject.reload("apple", "2")
    after = subject.models.get("apple")
    assert place_of(after) == place_of(before)
    assert after is not before
    assert after != before, "compared by identity"


def test_a_lease_keeps_what_it_has(subject: Subject) -> None:
    size = subject.models.get("apple").info.preprocessing.image_size
    with subject.models.lease("apple") as held:
        subject.reload("apple", "2")
        held.engine(zeros(size), 0)
        assert subject.models.get("apple") is not held


def zeros(size: int) -> np.ndarray:
    return np.zeros((1, size, size, 3), np.uint8)
