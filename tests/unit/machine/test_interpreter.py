import gc
import sys

import pytest

from condconv_serve.machine.interpreter import serve_rather_than_compute


@pytest.fixture
def _as_it_was():
    seconds, thresholds = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(seconds)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("_as_it_was")
def test_threads_take_turns_often_and_garbage_is_looked_for_rarely():
    old = gc.get_threshold()[2]
    serve_rather_than_compute()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert gc.get_threshold()[2] > old
