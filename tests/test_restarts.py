"""The restart policy, told as histories of deaths."""

import pytest

from shardnet import restarts


def delays(*deaths: float) -> list[float | None]:
    policy = restarts.Restarts(chance=lambda: 0.0)
    return [policy.died(when) for when in deaths]


def test_the_first_restart_is_at_once() -> None:
    assert delays(100.0) == [0.0]


def test_later_restarts_wait_for_50_ms_and_then_twice_as_long_each_time() -> None:
    assert delays(0.0, 4.0, 8.0, 12.0, 16.0) == [0.0, 0.05, 0.1, 0.2, 0.4]


def test_no_restart_waits_for_longer_than_5_s() -> None:
    assert delays(*(i * 3.0 for i in range(20)))[-1] == restarts.DELAY_MAX_S


def test_the_fifth_death_in_ten_seconds_is_the_last() -> None:
    assert delays(0.0, 1.0, 2.0, 3.0, 9.9)[-1] is None


def test_five_deaths_in_more_than_ten_seconds_are_none_too_many() -> None:
    assert delays(0.0, 1.0, 2.0, 3.0, 10.0)[-1] is not None


def test_a_worker_that_lived_for_five_seconds_is_started_again_at_once() -> None:
    assert delays(0.0, 1.0, 2.0, 7.2) == [0.0, 0.05, 0.1, 0.0]


def test_the_time_in_which_a_worker_was_not_yet_started_again_is_no_life() -> None:
    assert delays(0.0, 1.0, 2.0, 7.0) == [0.0, 0.05, 0.1, 0.2]


def test_a_reset_forgives_the_deaths_and_keeps_the_count() -> None:
    policy = restarts.Restarts()
    for when in range(5):
        policy.died(float(when))
    policy.reset()
    assert policy.died(5.0) == 0.0
    assert policy.count == 6


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_chance_adds_at_most_a_quarter(chance: float) -> None:
    policy = restarts.Restarts(chance=lambda: chance)
    policy.died(0.0)
    assert policy.died(1.0) == pytest.approx(0.05 * (1 + chance / 4))
