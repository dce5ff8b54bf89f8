"""The loop's control flow, with a toy in place of every port: no device, no file."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from jaxllm.train.config import Guard
from jaxllm.train.guard import Judge
from jaxllm.train.loop import Finished, Paused, Plan, Stopped, train

PLAN = Plan(last_step=10, stop_at=10, save_at=lambda step: step % 4 == 0, evaluate_every=5, lag=1)


@dataclasses.dataclass
class Record:
    step: int
    refused: bool = False


class Toy:
    """The state is the number of updates; every call is logged."""

    def __init__(self, refuse: set[int] = frozenset(), signal_after: int | None = None, max_refused: int = 2) -> None:  # type: ignore[assignment]
        self.calls: list[tuple[str, int]] = []
        self.refuse, self.signal_after = refuse, signal_after
        self.judge = Judge(Guard(max_refused=max_refused))
        self.dispatched = 0

    def batch(self, step: int) -> int:
        return step

    def advance(self, state: Any, batch: Any, step: int) -> tuple[Any, Any]:
        assert batch == step == state + 1
        self.dispatched = step
        self.calls.append(("advance", step))
        return state + 1, step

    def record(self, step: int, batch: Any, metrics: Any) -> Any:
        assert batch == metrics == step
        self.calls.append(("record", step))
        return Record(step, step in self.refuse)

    def save(self, step: int, state: Any) -> None:
        assert state == step
        self.calls.append(("save", step))

    def evaluate(self, step: int, state: Any) -> None:
        assert state == step
        self.calls.append(("evaluate", step))

    def stop_requested(self) -> str | None:
        return "SIGTERM" if self.signal_after is not None and self.dispatched >= self.signal_after else None

    def of(self, name: str) -> list[int]:
        return [step for what, step in self.calls if what == name]


def run(toy: Toy, plan: Plan = PLAN, start: int = 0) -> tuple[Any, Any]:
    return train(plan, toy, start, start)  # type: ignore[arg-type]


def test_every_step_is_recorded_once_in_order_and_saved_on_schedule() -> None:
    toy = Toy()
    state, outcome = run(toy)
    assert (state, outcome) == (10, Finished())
    assert toy.of("record") == list(range(1, 11))
    assert toy.of("save") == [4, 8, 10]
    assert toy.of("evaluate") == [5, 10]


def test_a_step_is_recorded_and_judged_before_it_is_saved_or_evaluated() -> None:
    toy = Toy()
    run(toy)
    for what in ("save", "evaluate"):
        for step in toy.of(what):
            assert toy.calls.index(("record", step)) < toy.calls.index((what, step))


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_metrics_are_fetched_lag_steps_late(lag: int) -> None:
    toy = Toy()
    run(toy, dataclasses.replace(PLAN, lag=lag, save_at=lambda step: False, evaluate_every=None))
    names = [c for c in toy.calls if c[0] in ("advance", "record")]
    dispatched_before = {
        s: sum(1 for c in names[: names.index(("record", s))] if c[0] != "record") for s in range(1, 10)
    }
    assert all(dispatched_before[s] == min(s + lag, 10) for s in range(1, 10))


def test_what_was_restored_is_neither_saved_nor_evaluated_again() -> None:
    toy = Toy()
    run(toy, start=8)
    assert toy.of("save") == [10]
    assert toy.of("evaluate") == [10]
    assert toy.of("record") == [9, 10]


def test_a_finished_run_does_nothing() -> None:
    toy = Toy()
    assert run(toy, start=10) == (10, Finished())
    assert toy.calls == []


def test_a_signal_saves_where_it_is_and_leaves() -> None:
    toy = Toy(signal_after=6)
    state, outcome = run(toy)
    assert isinstance(outcome, Paused) and outcome.step == state == 6
    assert toy.of("save") == [4, 6]
    assert toy.of("record") == list(range(1, 7))


def test_stop_at_saves_and_leaves() -> None:
    toy = Toy()
    state, outcome = run(toy, dataclasses.replace(PLAN, stop_at=7))
    assert isinstance(outcome, Paused) and state == 7 and toy.of("save")[-1] == 7


def test_a_signal_before_the_first_step_saves_nothing() -> None:
    toy = Toy(signal_after=0)
    state, outcome = run(toy)
    assert isinstance(outcome, Paused) and state == 0 and toy.calls == []


def test_the_guard_stops_after_refusals_in_a_row_and_nothing_unjudged_is_saved() -> None:
    toy = Toy(refuse={3, 7, 8})
    _, outcome = run(toy)
    assert isinstance(outcome, Stopped) and outcome.step == 8
    assert toy.of("save") == [4]


def test_a_good_step_forgives_refusals() -> None:
    assert run(Toy(refuse={2, 4, 6, 8, 10}))[1] == Finished()


def test_pieces_add_up_to_the_whole() -> None:
    whole, pieces = Toy(), Toy()
    run(whole)
    state, _ = run(pieces, dataclasses.replace(PLAN, stop_at=3))
    pieces.judge = Judge(Guard())
    run(pieces, start=state)
    assert Counter(pieces.of("record")) == Counter(whole.of("record"))
