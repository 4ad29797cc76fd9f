import asyncio
import sys

import pytest

from condconv_serve.ablation_loading import load_ablation
from condconv_serve.errors import OutOfMemory, TooLittleMemory
from condconv_serve.machine.memory import MemoryUse
from condconv_serve.runtime.devices import Machine
from condconv_serve.runtime.plan import make_plan
from condconv_serve.serving.memory_check import MemoryCheck
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle, write_bundle
from tests.unit.serving.models import Place
from tests.unit.store.samples import new_bundle, rewrite


@pytest.fixture
def bundle(tmp_path):
    return open_bundle(write_bundle(tmp_path, new_bundle(name="pear")))


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.add("pear", "1")
    place.follower.sync_now()
    place.needs["2"] = 310_000_000
    place.left = 120_000_000
    yield place
    place.follower.close()


def load(check, bundle):
    with check.loading(bundle):
        pass


def test_a_version_that_does_not_fit_fails_with_both_figures_and_serving_goes_on(place):
    place.add("pear", "2")
    place.follower.sync_now()
    assert place.states() == {"1": "serving", "2": "failed"}
    assert place.reason("2") == (
        "pear/2 needs about 310 MB of memory to load, but the memory limit leaves 120 MB."
    )  # fmt: skip
    place.follower.sync_now()
    assert place.loads("failed") == 1, "nothing has changed, so it isn't tried again"


def test_it_is_tried_again_once_there_is_enough(place):
    place.add("pear", "2")
    place.follower.sync_now()
    place.left = 310_000_000
    place.follower.sync_now()
    assert place.states() == {"1": "available", "2": "serving"}
    assert place.reason("2") is None


def test_it_is_tried_again_when_its_files_change(place):
    path = place.add("pear", "2")
    place.follower.sync_now()
    rewrite(path, licence="Apache-2.0")
    place.needs["2"] = 100_000_000
    place.follower.sync_now()
    assert place.served() == ["2"]


async def test_it_is_tried_again_when_another_version_has_gone(place):
    place.add("plum", "1")
    place.follower.sync_now()
    place.add("pear", "2")
    place.follower.sync_now()
    assert place.states()["2"] == "failed"

    def release():
        place.left = 400_000_000

    place.on_release = release
    await place.admin.unload("plum", "1")
    async with asyncio.timeout(60):
        while place.served() != ["2"]:  # noqa: ASYNC110 - what changes is on other threads
            await asyncio.sleep(0.01)


async def test_whoever_asks_for_it_learns_that_it_may_fit_later(place):
    place.add("pear", "2")
    with pytest.raises(TooLittleMemory, match=r"310 MB .* leaves 120 MB") as caught:
        await place.admin.load("pear", "2")
    assert caught.value.retry_after == 30
    with pytest.raises(TooLittleMemory):
        await place.admin.set_alias("pear", "stable", {"2": 1})
    place.left = 400_000_000
    assert (await place.admin.load("pear", "2")).state == "serving"


def test_new_files_of_a_served_version_that_do_not_fit_leave_the_old_copy(place):
    before = place.registry.get("pear")
    place.needs["1"] = 310_000_000
    rewrite(place.path / "pear" / "1", licence="Apache-2.0")
    place.follower.sync_now()
    assert place.registry.get("pear") is before
    assert "310 MB" in place.reason("1")


def test_the_default_model_comes_first_at_the_start(tmp_path):
    place = Place(tmp_path)
    for name in ("pear", "apple"):
        place.add(name, "1")
    order = []
    registry_load = place.registry.load
    place.registry.load = lambda bundle: order.append(bundle.manifest.name) or registry_load(bundle)
    place.follower.sync_now()
    assert order == ["pear", "apple"]


def test_an_older_version_steps_in_at_the_start(tmp_path):
    place = Place(tmp_path)
    place.needs["2"], place.left = 200, 100
    for version in ("1", "2"):
        place.add("pear", version)
    place.follower.sync_now()
    assert place.states() == {"1": "serving", "2": "failed"}


def test_memory_that_runs_out_in_spite_of_the_estimate_is_called_that(place):
    place.needs["2"] = 0
    place.greedy.add("2")
    place.add("pear", "2")
    place.follower.sync_now()
    assert place.reason("2") == "pear/2 found too little memory while it was loaded."
    place.follower.sync_now()
    assert place.loads("failed") == 1, "there isn't more memory than before"
    place.greedy.clear()
    place.left = 140_000_000
    place.follower.sync_now()
    assert place.served() == ["2"]


@pytest.mark.parametrize(
    ("left", "fits"), [(99, False), (100, True), (None, True)], ids=["too little", "just enough", "not known"]
)
def test_what_fits(left, fits, bundle):
    check = MemoryCheck(lambda bundle: 100, left=lambda: left, use=lambda: None)
    assert check.fits(100) is fits
    if fits:
        load(check, bundle)
    else:
        with pytest.raises(TooLittleMemory) as caught:
            load(check, bundle)
        assert caught.value.needs == 100


def test_the_estimate_is_corrected_by_the_loads_that_were_seen(bundle, tmp_path):
    uses = []
    check = MemoryCheck(lambda bundle: 100, left=lambda: None, use=lambda: uses.pop(0))
    for peak in (1150, 1120, 1900):
        uses[:] = [MemoryUse(now=1000, most=1050), MemoryUse(now=1060, most=peak)]
        load(check, bundle)
    assert check.needs(bundle) == 150, "the median, so one odd load doesn't count"
    other = open_bundle(write_bundle(tmp_path, new_bundle(name="plum")))
    assert check.needs(other) == 125, "half as much for another model"


@pytest.mark.parametrize(
    ("before", "after"),
    [(MemoryUse(1000, 2000), MemoryUse(1100, 2000)), (None, None)],
    ids=["no new peak", "no figures"],
)
def test_nothing_is_learned_from_what_does_not_show(before, after, bundle):
    uses = [before, after]
    check = MemoryCheck(lambda bundle: 100, left=lambda: None, use=lambda: uses.pop(0))
    load(check, bundle)
    assert check.needs(bundle) == 100


def test_one_odd_load_can_not_make_estimates_absurd(bundle):
    uses = [MemoryUse(0, 0), MemoryUse(0, 10**9)]
    check = MemoryCheck(lambda bundle: 100, left=lambda: None, use=lambda: uses.pop(0))
    load(check, bundle)
    assert check.needs(bundle) == 300


def test_the_first_load_needs_room_for_the_engine_too(bundle):
    prepared = []
    check = MemoryCheck(
        lambda bundle: 100, prepare=lambda: prepared.append(1), prepare_bytes=50, left=lambda: 149, use=lambda: None
    )
    with pytest.raises(TooLittleMemory, match="leaves"):
        load(check, bundle)
    assert not prepared
    check = MemoryCheck(
        lambda bundle: 100, prepare=lambda: prepared.append(1), prepare_bytes=50, left=lambda: 150, use=lambda: None
    )
    load(check, bundle)
    assert prepared
    assert check.needs(bundle) == 100


def test_two_loads_at_once_share_what_is_left(bundle):
    check = MemoryCheck(lambda bundle: 60, left=lambda: 100, use=lambda: None)
    with check.loading(bundle), pytest.raises(TooLittleMemory, match="leaves"):
        load(check, bundle)
    load(check, bundle)


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemory("The engine is out of memory.")])
def test_a_failed_load_leaves_no_trace(error, bundle):
    check = MemoryCheck(lambda bundle: 60, left=lambda: 100, use=lambda: None)
    with pytest.raises(TooLittleMemory) as caught, check.loading(bundle):
        raise error
    assert caught.value.needs == 110
    assert check.left() == 100


def test_an_ablation_that_does_not_fit_is_refused_before_anything_is_loaded(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "condconv_serve.runtime.native_engine", None)
    plan = make_plan(Machine(cores=1, cpu_bfloat16=False, openvino=False))
    check = MemoryCheck(lambda bundle: 300_000_000, left=lambda: 100_000_000, use=lambda: None)
    with pytest.raises(TooLittleMemory, match="pear/1 needs about 300 MB"):
        load_ablation(Settings(model_store=place.path), plan, check, "pear", "1")
