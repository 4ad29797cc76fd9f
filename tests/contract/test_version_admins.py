"""What admins may ask of a store without models: the real one and the fake say the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from condconv_serve.errors import InvalidParameter, ModelNotFound
from condconv_serve.fronts.context import VersionAdmin
from tests.contract.fakes import NoVersions
from tests.unit.serving.models import Place

ASKED: dict[str, Callable[[VersionAdmin], Awaitable[object]]] = {
    "load": lambda admin: admin.load("pear", "1"),
    "unload": lambda admin: admin.unload("pear", "1"),
    "set_alias": lambda admin: admin.set_alias("pear", "stable", {"1": 1}),
    "roll_back": lambda admin: admin.roll_back("pear", "stable"),
    "delete_alias": lambda admin: admin.delete_alias("pear", "stable"),
}


@pytest.fixture(params=["real", "fake"])
def admin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VersionAdmin]:
    if request.param == "fake":
        yield NoVersions()
        return
    place = Place(tmp_path)
    yield place.admin
    place.follower.close()


def test_every_method_is_asked() -> None:
    methods = {name for name in vars(VersionAdmin) if not name.startswith("_")}
    assert methods == {*ASKED, "status"}


def test_nothing_is_there(admin: VersionAdmin) -> None:
    assert dict(admin.status()) == {}


@pytest.mark.parametrize("method", ASKED)
async def test_there_is_no_such_model(admin: VersionAdmin, method: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await ASKED[method](admin)
    assert str(caught.value) == "There is no model 'pear' in the store; there are: none."


@pytest.mark.parametrize(("alias", "versions"), [("Stable", {"1": 1}), ("stable", {}), ("stable", {"1": 0})])
async def test_an_alias_that_no_store_could_have(admin: VersionAdmin, alias: str, versions: dict[str, int]) -> None:
    with pytest.raises(InvalidParameter):
        await admin.set_alias("pear", alias, versions)
