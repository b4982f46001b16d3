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


def lives(*lives_s: float, by_others: bool = True) -> list[float | None]:
    """The delays after lives of so many seconds of service each, one after the other, with a start of 0.1 s before each."""
    policy = restarts.Restarts(chance=lambda: 0.0)
    now, delays = 1000.0, []
    for life_s in lives_s:
        policy.serves(now := now + 0.1)
        delays.append(policy.died(now := now + life_s, by_others=by_others))
        now += delays[-1] or 0.0
    return delays


def test_one_that_served_and_was_killed_by_others_is_started_again_at_once_however_often() -> None:
    assert lives(*[0.9] * 100) == [0.0] * 100
    assert lives(*[restarts.SERVED_S + 0.01] * 100) == [0.0] * 100


def test_one_that_dies_of_what_it_does_waits_and_is_given_up_however_long_it_served() -> None:
    assert lives(*[0.9] * 5, by_others=False) == [0.0, 0.05, 0.1, 0.2, None]


def test_one_that_is_killed_in_its_first_moments_waits_and_is_given_up() -> None:
    assert lives(*[0.3] * 5) == [0.0, 0.05, 0.1, 0.2, None]


def test_one_that_is_killed_before_it_serves_waits_and_is_given_up() -> None:
    policy = restarts.Restarts(chance=lambda: 0.0)
    assert [policy.died(when, by_others=True) for when in (0.0, 0.9, 1.8, 2.7, 3.6)] == [0.0, 0.05, 0.1, 0.2, None]


def test_a_kill_after_service_forgives_no_death_before_it() -> None:
    policy = restarts.Restarts(chance=lambda: 0.0)
    assert [policy.died(when) for when in (0.0, 1.0, 2.0, 3.0)] == [0.0, 0.05, 0.1, 0.2]
    policy.serves(3.3)
    assert policy.died(4.0, by_others=True) == 0.0
    policy.serves(4.1)
    assert policy.died(5.0) is None
    assert policy.count == 6
