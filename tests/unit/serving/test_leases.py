import threading

import pytest

from condconv_serve.serving.leases import Leases
from tests.contract.fakes import served_model


@pytest.fixture
def leases():
    return Leases(release_memory=lambda: None)


def test_an_idle_model_is_closed_at_once(leases):
    model, done = served_model(), threading.Event()
    leases.retire(model, done.set)
    assert done.wait(60)
    assert model.engine.closed.is_set()
    assert leases.retiring() == frozenset()


def test_a_held_model_is_closed_after_its_last_lease(leases):
    model, done = served_model(), threading.Event()
    first, second = leases.hold(model), leases.hold(model)
    leases.retire(model, done.set)
    first.release()
    first.release()  # counts once
    assert leases.retiring() == {model}
    assert not done.wait(0.02)
    with second as held:
        assert held is model
    assert done.wait(60)
    assert model.engine.closed.is_set()


def test_what_was_not_retired_stays_open(leases):
    model = served_model()
    with leases.hold(model):
        pass
    assert not model.engine.closed.wait(0.02)


def test_a_lease_after_the_end_closes_nothing_twice(leases):
    model, done = served_model(), threading.Event()
    leases.retire(model, done.set)
    assert done.wait(60)
    leases.hold(model).release()
    assert model.engine.closed.is_set()
    assert leases.retiring() == frozenset()
