"""Timers on a clock that the test turns."""

from shardnet import timers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_calls_are_made_in_the_order_of_their_times() -> None:
    clock, calls = Clock(), []
    due = timers.Timers(clock)
    due.later(2.0, lambda: calls.append("second"))
    due.later(1.0, lambda: calls.append("first"))
    clock.now = 3.0
    due.fire()
    assert calls == ["first", "second"]


def test_a_call_is_not_made_before_its_time() -> None:
    clock, calls = Clock(), []
    due = timers.Timers(clock)
    due.later(1.0, lambda: calls.append("early"))
    clock.now = 0.9
    due.fire()
    assert calls == []
    assert due.wait() == 1.0 - 0.9


def test_a_cancelled_call_is_never_made_and_nothing_waits_for_it() -> None:
    clock, calls = Clock(), []
    due = timers.Timers(clock)
    token = due.later(1.0, lambda: calls.append("cancelled"))
    due.cancel(token)
    clock.now = 2.0
    due.fire()
    assert calls == []
    assert due.wait() is None


def test_a_call_may_cancel_one_that_is_due_with_it() -> None:
    clock, calls = Clock(), []
    due = timers.Timers(clock)
    due.later(1.0, lambda: due.cancel(other))
    other = due.later(1.0, lambda: calls.append("cancelled"))
    clock.now = 1.0
    due.fire()
    assert calls == []


def test_a_call_that_adds_another_at_once_does_not_keep_the_loop() -> None:
    clock, calls = Clock(), []
    due = timers.Timers(clock)

    def again() -> None:
        calls.append("call")
        due.later(0.0, again)

    again()
    due.fire()
    due.fire()
    assert calls == ["call"] * 3
