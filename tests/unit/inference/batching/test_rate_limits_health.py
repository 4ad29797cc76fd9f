import pytest

from condconv_serve.inference.batching.health import COOL_DOWN_SECONDS, MAX_FAILURES, EngineHealth
from condconv_serve.inference.batching.limits import RECOVERY_SECONDS, BatchLimits
from condconv_serve.inference.batching.rate import KEPT_SECONDS, TRUSTED_SECONDS, RowRate


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_an_unknown_key_is_not_waited_for():
    rate = RowRate(streams=2)
    assert rate.wait([]) == rate.wait([("a", 7)]) == 0
    rate.note("b", rows=1, seconds=1, full=True)
    assert rate.wait([("a", 7)]) == 0


def test_streams_share_the_rows_of_all_keys():
    rate = RowRate(streams=2)
    rate.note("a", rows=4, seconds=0.4, full=True)
    rate.note("b", rows=2, seconds=1.0, full=True)
    assert rate.wait([("a", 10), ("b", 6)]) == pytest.approx((10 * 0.1 + 6 * 0.5) / 2)


def test_a_lone_row_is_not_split_among_streams():
    rate = RowRate(streams=2)
    assert rate.own("a", 3) == 0
    rate.note("a", rows=10, seconds=1, full=True)
    assert [rate.own("a", rows) for rows in (1, 2, 3)] == pytest.approx([0.1, 0.1, 0.2])


def test_full_batches_count_and_others_only_until_there_is_one():
    rate = RowRate(streams=1)
    for seconds in (1.0, 2.0, 3.0):
        rate.note("a", rows=1, seconds=seconds, full=False)
    assert rate.wait([("a", 1)]) == pytest.approx(2)
    for _ in range(5):
        rate.note("a", rows=4, seconds=0.4, full=True)
    assert rate.wait([("a", 1)]) == pytest.approx(0.1)
    for _ in range(5):
        rate.note("a", rows=1, seconds=9.0, full=False)
    assert rate.wait([("a", 1)]) == pytest.approx(0.1)
    for _ in range(5):
        rate.note("a", rows=4, seconds=1.2, full=True)
    assert rate.wait([("a", 1)]) == pytest.approx(0.3)


@pytest.mark.parametrize("before", [1, 5, 20])
@pytest.mark.parametrize("streams", [1, 2, 16])
def test_a_stopped_process_does_not_change_the_estimate(streams, before):
    """It holds up one batch in each stream."""
    rate = RowRate(streams=streams)
    for _ in range(before * streams):
        rate.note("a", rows=4, seconds=0.4, full=True)
    for _ in range(streams):
        rate.note("a", rows=4, seconds=24.0, full=True)
    assert rate.own("a", 1) == pytest.approx(0.1)


def test_a_first_batch_that_was_held_up_is_outvoted_by_the_second():
    rate = RowRate(streams=1)
    rate.note("a", rows=1, seconds=6.0, full=False)
    rate.note("a", rows=1, seconds=0.1, full=False)
    assert rate.wait([("a", 1)]) == pytest.approx(0.1)


def test_faster_batches_count_too():
    rate = RowRate(streams=1)
    rate.note("a", rows=4, seconds=2.4, full=True)
    for _ in range(50):
        rate.note("a", rows=1, seconds=0.005, full=False)
    assert rate.wait([("a", 1)]) == pytest.approx(0.005, rel=1e-2)


def test_what_nothing_confirms_is_believed_less_and_less():
    clock = Clock()
    rate = RowRate(streams=1, clock=clock)
    rate.note("a", rows=1, seconds=0.5, full=True)
    found = []
    for _ in range(4):
        found.append(rate.wait([("a", 1)]))
        clock.now += TRUSTED_SECONDS
    assert found == pytest.approx([0.5, 0.5, 0.25, 0.125], rel=0.05)
    rate.note("a", rows=1, seconds=0.5, full=True)
    assert rate.wait([("a", 1)]) == pytest.approx(0.5), "and at once again when it is confirmed"


def test_averages_of_versions_long_gone_do_not_pile_up():
    clock = Clock()
    rate = RowRate(streams=1, clock=clock)
    for version in range(100):
        rate.note(("a", version), rows=1, seconds=0.5, full=True)
        rate.note("other", rows=1, seconds=0.5, full=True)
        clock.now += KEPT_SECONDS / 4
    assert len(rate) <= 6
    assert rate.wait([("other", 1)]) > 0, "what is still computed stays"
    assert rate.wait([(("a", 0), 1)]) == 0


def test_a_limit_is_halved_and_recovers_by_doubling():
    clock = Clock()
    limits = BatchLimits(8, clock=clock)
    assert limits.of("a") == 8
    assert limits.lower("a", 8) == 4
    assert limits.lower("a", 4) == 2
    assert (limits.of("a"), limits.of("b")) == (2, 8)
    for expected in (2, 4, 8, 8):
        assert limits.of("a") == expected
        clock.now += RECOVERY_SECONDS
    clock.now += 1e9
    assert limits.of("a") == 8


def test_a_limit_never_falls_below_one_and_halves_never_raise_it():
    limits = BatchLimits(8, clock=Clock())
    assert [limits.lower("a", rows) for rows in (3, 8, 1, 1)] == [1, 1, 1, 1]


def test_lowered_limits_of_versions_long_gone_do_not_pile_up():
    clock = Clock()
    limits = BatchLimits(8, clock=clock)
    for version in range(100):
        assert limits.lower(("a", version), 8) == 4
        clock.now += RECOVERY_SECONDS
    assert len(limits) == 1
    assert limits.of(("a", 0)) == 8


def test_an_engine_is_broken_after_failures_in_a_row_and_tried_again():
    clock = Clock()
    health = EngineHealth(clock=clock)
    for _ in range(MAX_FAILURES - 1):
        health.failed("no luck")
    assert health.problem() is None
    health.succeeded()
    for _ in range(MAX_FAILURES):
        assert health.problem() is None
        health.failed("no luck")
    assert health.problem() == (f"The engine has failed {MAX_FAILURES} times in a row: no luck", COOL_DOWN_SECONDS)
    clock.now += COOL_DOWN_SECONDS
    assert health.problem() is None, "it is given another batch"
    assert health.broken() == f"The engine has failed {MAX_FAILURES} times in a row: no luck", "until one works"
    health.failed("again")
    assert health.problem()[0].endswith(": again"), "one more failure is enough"
    clock.now += COOL_DOWN_SECONDS
    health.succeeded()
    health.failed("once")
    assert health.problem() is health.broken() is None
