from condconv_serve.shadow.pauses import FAILURES, HANG_SECONDS, PAUSE_SECONDS, Pauses


def test_failures_in_a_row_and_hangs_give_pauses():
    now = [1000.0]
    pauses = Pauses(clock=lambda: now[0])
    for _ in range(FAILURES - 1):
        pauses.failed("pear", "2")
    pauses.succeeded("pear", "2")
    pauses.failed("pear", "2")
    assert not pauses.paused("pear", "2")
    for _ in range(FAILURES - 1):
        pauses.failed("pear", "2")
    assert pauses.paused("pear", "2")
    assert not pauses.paused("pear", "3")
    now[0] += PAUSE_SECONDS
    assert not pauses.paused("pear", "2")
    for expected in (HANG_SECONDS, 2 * HANG_SECONDS):
        pauses.hung("pear", "2")
        now[0] += expected - 1
        assert pauses.paused("pear", "2")
        now[0] += 1
        assert not pauses.paused("pear", "2")
    pauses.hung("pear", "2")
    pauses.forget("pear", "2")
    assert not pauses.paused("pear", "2")
