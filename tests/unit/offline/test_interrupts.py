"""Ctrl-C and SIGTERM: held while something is made whole, and what they do then."""

import signal

import pytest

from condconv_serve.offline.interrupts import Terminated, interrupts_held, sigterm_interrupts


@pytest.fixture(autouse=True)
def _handlers():
    """Both as in a process of its own, and afterwards as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_ends_a_block_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert issubclass(Terminated, KeyboardInterrupt)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_both_wait(number, raised):
    done = []
    with pytest.raises(raised), sigterm_interrupts():  # noqa: PT012
        with interrupts_held():
            signal.raise_signal(number)
            done.append("whole")
        done.append("more")
    assert done == ["whole"]


def test_what_is_ignored_elsewhere_is_ignored_after_the_block():
    """As Ctrl-C is by commands in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_sigterm_kills_at_once_where_nobody_else_handles_it():
    """A block may wait for ever, for instance for who reads what is printed."""
    with interrupts_held():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler


def test_an_error_of_the_block_comes_first():
    with pytest.raises(ValueError, match="broken"), sigterm_interrupts(), interrupts_held():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("broken")
