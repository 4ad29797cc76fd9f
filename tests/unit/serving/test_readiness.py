import pytest

from condconv_serve.errors import Draining, NotReady
from condconv_serve.serving.readiness import Readiness


def test_loading_then_ready_then_draining():
    readiness = Readiness(lambda: None)
    assert isinstance(readiness.unready(), NotReady)
    assert readiness.unready() is readiness.refusal()
    readiness.loaded()
    assert readiness.unready() is readiness.refusal() is None
    readiness.drain()
    assert isinstance(readiness.unready(), Draining)
    assert readiness.refusal() is None, "what comes is still served"
    assert readiness.draining


def test_what_could_not_be_loaded_stays_unready():
    readiness = Readiness(lambda: None)
    readiness.failed("No such bundle.")
    assert str(readiness.refusal()) == "No such bundle."
    assert readiness.refusal().retry_after is None


def test_a_broken_engine_says_why_and_for_how_long():
    problem = None
    readiness = Readiness(lambda: problem)
    readiness.loaded()
    problem = ("It is broken.", 7.5)
    assert (str(readiness.unready()), readiness.refusal().retry_after) == ("It is broken.", 7.5)
    problem = None
    assert readiness.unready() is None


@pytest.mark.parametrize("loaded", [True, False])
def test_draining_while_loading(loaded):
    readiness = Readiness(lambda: None)
    if loaded:
        readiness.loaded()
    readiness.drain()
    assert isinstance(readiness.unready(), Draining)
    assert (readiness.refusal() is None) is loaded
