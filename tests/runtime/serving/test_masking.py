"""The time for the masks of an image, by a clock of our own."""

from types import SimpleNamespace

import pytest
from diffseg.cancellation import StoppedError
from diffseg.serving.protocol import masking
from diffseg.serving.protocol.masking import Budget, network_seconds, next_pace


@pytest.fixture
def clock(monkeypatch):
    """Processor time and time, which the test sets."""
    now = SimpleNamespace(thread=100.0, wall=1000.0)
    monkeypatch.setattr(masking, "processor_seconds", lambda: now.thread)
    monkeypatch.setattr(masking, "time", SimpleNamespace(monotonic=lambda: now.wall))
    return now


def is_over(budget):
    try:
        budget()
    except StoppedError:
        return True
    return False


def test_it_begins_with_the_first_check_and_counts_processor_time(clock):
    budget = Budget(2.0, 1100.0)
    clock.thread = 500.0
    assert not is_over(budget)
    clock.wall = 1099.0  # other programs took it
    clock.thread = 502.0
    assert not is_over(budget)
    clock.thread = 502.1
    assert is_over(budget)
    assert str(budget.error).startswith("the masks of this image take more than 2.0 s with these settings; use fewer")
    assert budget.error.outcome == "costly"


def test_it_ends_with_the_request(clock):
    budget = Budget(2.0, 1100.0)
    assert not is_over(budget)
    clock.wall = 1100.0
    assert not is_over(budget)
    assert isinstance(budget.error, TimeoutError)
    clock.wall = 1100.5
    assert is_over(budget)
    assert isinstance(budget.error, TimeoutError)


def test_it_ends_when_nobody_waits(clock):
    budget = Budget(2.0, 1100.0)
    assert not is_over(budget)
    budget.abandoned = True
    assert is_over(budget)
    assert isinstance(budget.error, TimeoutError)


def test_the_pace_is_that_of_the_network_alone():
    def result(**timings):
        return SimpleNamespace(timings=timings)

    results = [result(encode=1.0, attend=2.0, aggregate=0.5, refine=99.0), result(encode=0.5, decode=7.0)]
    assert network_seconds(results) == 2.0
    assert next_pace(1.0, results) == pytest.approx(0.8 * 1.0 + 0.2 * 2.0)
    assert next_pace(1.0, []) == 1.0
