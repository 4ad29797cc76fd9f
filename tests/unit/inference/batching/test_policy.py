import pytest

from condconv_serve.inference.batching.policy import Priority, rank, rows_to_take, urgency


@pytest.mark.parametrize(
    ("waiting", "free_streams", "max_batch_size", "taken"),
    [
        (1, 1, 8, 1),
        (5, 1, 8, 5),
        (8, 1, 8, 8),
        (9, 1, 8, 8),
        (9, 1, 1, 1),
        (1, 2, 8, 1),
        (2, 2, 8, 1),
        (3, 2, 8, 2),  # the other stream takes the third
        (8, 2, 8, 4),
        (16, 2, 8, 8),
        (17, 2, 8, 8),
        (100, 4, 8, 8),
        (3, 8, 8, 1),
        (3, 0, 8, 3),  # no stream said to be free: this one takes all
    ],
)
def test_rows_to_take(waiting, free_streams, max_batch_size, taken):
    assert rows_to_take(waiting, free_streams=free_streams, max_batch_size=max_batch_size) == taken


@pytest.mark.parametrize("max_batch_size", [1, 3, 8])
@pytest.mark.parametrize("free_streams", [1, 2, 5])
@pytest.mark.parametrize("waiting", [1, 2, 7, 40])
def test_free_streams_take_all_that_fits(waiting, free_streams, max_batch_size):
    left = waiting
    for free in range(free_streams, 0, -1):
        if left:
            taken = rows_to_take(left, free_streams=free, max_batch_size=max_batch_size)
            assert 1 <= taken <= min(left, max_batch_size)
            left -= taken
    assert left == max(0, waiting - free_streams * max_batch_size)


@pytest.mark.parametrize(
    ("priority", "waited", "urgent"),
    [
        (Priority.HIGH, 0, 0),
        (Priority.HIGH, 100, 0),
        (Priority.NORMAL, 4.9, 1),
        (Priority.NORMAL, 5, 0),
        (Priority.LOW, 0, 2),
        (Priority.LOW, 5, 1),
        (Priority.LOW, 10, 0),
        (Priority.LOW, 1000, 0),
    ],
)
def test_urgency_rises_with_waiting(priority, waited, urgent):
    assert urgency(priority, waited=waited, ageing=5) == urgent


def test_rank_lets_a_row_pass_those_that_came_less_than_the_ageing_before():
    def ranked(priority, enqueued_at):
        return rank(priority, enqueued_at=enqueued_at, ageing=5)

    assert ranked(Priority.HIGH, 4.9) < ranked(Priority.NORMAL, 0) < ranked(Priority.HIGH, 5.1)
    assert ranked(Priority.NORMAL, 4.9) < ranked(Priority.LOW, 0) < ranked(Priority.HIGH, 10.1)
