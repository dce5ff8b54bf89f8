"""Speeds are over steps only."""

import time

from jaxllm.train.clock import Clock, Pace


def test_speed_needs_two_marks_and_counts_only_what_lies_between() -> None:
    pace = Pace(window=3)
    assert pace.tokens_per_second is None and pace.seconds_per_step is None and pace.waiting_share == 0.0
    pace.mark(100, 0.0)
    assert pace.tokens_per_second is None
    time.sleep(0.01)
    pace.mark(100, 0.005)
    assert pace.seconds_per_step is not None and pace.seconds_per_step >= 0.01
    assert pace.tokens_per_second is not None and pace.tokens_per_second <= 100 / 0.01
    assert 0 < pace.waiting_share <= 0.5


def test_steps_that_only_catch_up_are_counted_apart() -> None:
    pace = Pace()
    for again in (True, True, False):
        pace.mark(1, 0.0, again=again)
        time.sleep(0.01)
    assert 0.01 <= pace.again < pace.stepping - 0.009


def test_time_before_forget_is_not_a_step() -> None:
    pace = Pace()
    pace.mark(1, 0.0)
    pace.forget()
    time.sleep(0.02)
    pace.mark(1, 0.0)
    assert pace.seconds_per_step is None and pace.stepping == 0.0


def test_phases_add_up() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.phase("saving"):
            time.sleep(0.005)
    assert 0.01 <= clock.seconds["saving"] <= clock.total()


def test_a_step_counts_from_when_it_was_finished_not_from_when_that_was_told() -> None:
    pace = Pace()
    for at in (10.0, 10.5, 11.0):
        pace.mark(1, 0.0, at=at)
    assert pace.seconds_per_step == 0.5 and pace.stepping == 1.0
