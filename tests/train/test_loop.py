"""The loop's control flow, with a toy in place of every port: no device, no file."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from jaxllm.train.config import Guard
from jaxllm.train.guard import Back, Decision, Judge, Keep
from jaxllm.train.loop import Finished, Paused, Plan, Stopped, train

PLAN = Plan(last_step=10, stop_at=10, save_at=lambda step: step % 4 == 0, evaluate_every=5, lag=1)


@dataclasses.dataclass
class Record:
    step: int
    refused: bool = False
    loss: float | None = 1.0
    grad_norm: float | None = 1.0


class Toy:
    """The state is the number of updates; every call is logged."""

    def __init__(self, refuse: set[int] = frozenset(), signal_after: int | None = None, max_refused: int = 2) -> None:  # type: ignore[assignment]
        self.calls: list[tuple[str, int]] = []
        self.refuse, self.signal_after = refuse, signal_after
        self.judging = Judge(Guard(max_refused=max_refused))
        self.back_at: dict[int, Back] = {}
        self.compared: dict[int, Back] = {}
        self.readied: dict[int, Back] = {}
        self.dispatched = self.started = 0
        self.asked: dict[int, int | None] = {}  # step -> where to go back to
        self.to: int | None = None

    def batch(self, step: int) -> int:
        return step

    def compare(self, state: Any, step: int) -> Decision:
        return self.compared.pop(step, Keep())

    def ready(self, state: Any, batch: Any, step: int) -> tuple[Any, Decision]:
        return state, self.readied.pop(step, Keep())

    def advance(self, state: Any, batch: Any, step: int) -> tuple[Any, Any]:
        assert batch == step == state + 1
        self.dispatched = step
        self.calls.append(("advance", step))
        return state + 1, step

    def record(self, step: int, batch: Any, metrics: Any) -> Any:
        assert batch == metrics == step
        self.calls.append(("record", step))
        return Record(step, step in self.refuse)

    def judge(self, record: Any) -> Decision:
        return self.back_at.pop(record.step, None) or self.judging.judge(record)

    def before(self, step: int) -> int | None:
        return max((s for s in self.of("save") if s < step), default=None)

    def go_back(self, back: Back, to: int) -> tuple[Any, int]:
        self.calls.append(("back", to))
        self.dispatched = to
        return to, to

    def requested(self) -> bool:
        return self.dispatched in self.asked

    def attend(self, step: int) -> str | None:
        assert self.of("record")[-1:] == [step] or step == self.started  # nothing is in flight
        self.calls.append(("attend", step))
        self.to = self.asked.pop(step)
        return None if self.to is None else "a person asks for it"

    def taken_back(self, why: str) -> tuple[Any, int]:
        assert self.to is not None
        self.calls.append(("back", self.to))
        self.dispatched = self.to
        return self.to, self.to

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
    pieces.judging = Judge(Guard())
    run(pieces, start=state)
    assert Counter(pieces.of("record")) == Counter(whole.of("record"))


def test_going_back_drops_what_was_dispatched_and_goes_on_from_the_checkpoint() -> None:
    toy = Toy()
    toy.back_at = {6: Back(first=6, last=6, data="skip_batch", why="a spike")}
    state, outcome = run(toy, dataclasses.replace(PLAN, evaluate_every=None, lag=2))
    assert (state, outcome) == (10, Finished())
    assert toy.of("record") == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]
    assert toy.of("back") == [4]
    assert toy.of("save") == [4, 8, 10]
    assert toy.of("advance") == [*range(1, 9), *range(5, 11)]


def test_going_back_from_the_last_step_goes_on() -> None:
    toy = Toy()
    toy.back_at = {10: Back(first=9, last=10, data="replay", why="a spike")}
    state, outcome = run(toy)
    assert (state, outcome) == (10, Finished())
    assert toy.of("back") == [8] and toy.of("save") == [4, 8, 10] and toy.of("evaluate") == [5, 10]


def test_without_a_checkpoint_to_go_back_to_the_run_stops() -> None:
    toy = Toy()
    toy.back_at = {3: Back(first=3, last=3, data="replay", why="a spike")}
    _, outcome = run(toy)
    assert isinstance(outcome, Stopped) and "no checkpoint before step 3" in outcome.why


@pytest.mark.parametrize("lag", [1, 3])
def test_what_is_asked_for_is_done_once_all_steps_are_recorded_and_before_the_next(lag: int) -> None:
    toy = Toy()
    toy.asked = {0: None, 6: None}
    assert run(toy, dataclasses.replace(PLAN, lag=lag)) == (10, Finished())
    assert toy.of("attend") == [0, 6] and toy.of("advance") == list(range(1, 11))
    at = toy.calls.index(("attend", 6))
    assert toy.calls.index(("record", 6)) < at < toy.calls.index(("advance", 7))


def test_asked_to_go_back_it_goes_on_from_there_and_saves_what_it_comes_to_again() -> None:
    toy = Toy()
    toy.asked = {8: 4, 10: 8}
    plan = dataclasses.replace(PLAN, evaluate_every=None, lag=2)
    assert run(toy, plan) == (10, Finished())
    assert toy.of("back") == [4, 8]
    assert toy.of("record") == [*range(1, 9), *range(5, 11), 9, 10]
    assert toy.of("save") == [4, 8, 10]  # not what was left: neither 8 nor 10 the first time


def test_a_verdict_comes_before_what_is_asked_for() -> None:
    toy = Toy(refuse={5, 6})
    toy.asked = {6: None}
    _, outcome = run(toy)
    assert isinstance(outcome, Stopped) and toy.of("attend") == []


def test_a_signal_after_going_back_saves_nothing_and_leaves() -> None:
    toy = Toy(signal_after=0)
    toy.asked = {8: 4}
    toy.dispatched = 8
    toy.started = 8
    state, outcome = run(toy, start=8)
    assert (state, outcome) == (4, Paused(4, "signal SIGTERM")) and toy.of("save") == []


def test_what_a_check_of_the_state_says_sends_the_run_back_before_anything_is_saved() -> None:
    toy = Toy()
    toy.compared = {8: Back(first=9, last=8, data="replay", why="replicas differ")}
    assert run(toy, dataclasses.replace(PLAN, evaluate_every=None)) == (10, Finished())
    assert toy.of("back") == [4] and toy.of("save") == [4, 8, 10]
    assert toy.calls.index(("back", 4)) < toy.calls.index(("save", 8))


@pytest.mark.parametrize(("step", "to"), [(7, 4), (5, 4)])
def test_what_a_check_of_the_gradient_says_sends_the_run_back_before_the_update(step: int, to: int) -> None:
    toy = Toy()
    toy.readied = {step: Back(first=step, last=step - 1, data="replay", why="the gradient came out otherwise")}
    plan = dataclasses.replace(PLAN, evaluate_every=None, check_at=lambda s: s in (5, 7))
    assert run(toy, plan) == (10, Finished())
    assert toy.of("back") == [to] and toy.of("record") == [*range(1, step), *range(to + 1, 11)]
    assert toy.of("advance") == toy.of("record") and toy.of("save") == [4, 8, 10]
