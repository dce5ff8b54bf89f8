"""The loop: everything that can stop or rewind a run is in sight here."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from jaxllm.ledger.records import StepRecord
from jaxllm.train.guard import Back, Decision, Keep, Stop
from jaxllm.train.state import Metrics, State


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of the loop. `last_step` is where the run ends, `stop_at` where this process does; `save_at` says
    whether a checkpoint is due after a step, `check_at` whether a self-check is due before one."""

    last_step: int
    stop_at: int
    save_at: Callable[[int], bool]
    evaluate_every: int | None
    lag: int
    check_at: Callable[[int], bool] = lambda step: False


class Ports(Protocol):
    """What the loop works with; app.py wires it. Observers get records and change nothing."""

    def batch(self, step: int) -> Any: ...
    def compare(self, state: State, step: int) -> Decision: ...
    def ready(self, state: State, batch: Any, step: int) -> tuple[State, Decision]: ...
    def advance(self, state: State, batch: Any, step: int) -> tuple[State, Metrics]: ...
    def record(self, step: int, batch: Any, metrics: Metrics) -> StepRecord: ...
    def judge(self, record: StepRecord) -> Decision: ...
    def before(self, step: int) -> int | None: ...
    def go_back(self, back: Back, to: int) -> tuple[State, int]: ...
    def requested(self) -> bool: ...
    def attend(self, step: int) -> str | None: ...
    def taken_back(self, why: str) -> tuple[State, int]: ...
    def save(self, step: int, state: State) -> None: ...
    def evaluate(self, step: int, state: State) -> None: ...
    def stop_requested(self) -> str | None: ...


@dataclass(frozen=True)
class Finished:
    """All steps of the run are done and saved."""


@dataclass(frozen=True)
class Paused:
    """Saved at `step` on the way; the same command goes on from there."""

    step: int
    why: str


@dataclass(frozen=True)
class Stopped:
    """The guard gave up after `step`; the last checkpoint stands."""

    step: int
    why: str


Outcome = Finished | Paused | Stopped


def train(plan: Plan, ports: Ports, state: State, start: int) -> tuple[State, Outcome]:
    """Run from `start` finished updates to the end, a stop signal, or the guard's verdict.

    Metrics are fetched `plan.lag` steps after their step was dispatched, so that the device never waits for the host; a
    step is judged before it can be saved. Going back drops what was dispatched since: those steps were never recorded.
    What a person asks for meanwhile is carried out between two steps, once all that were dispatched are recorded.
    """
    step = start
    inbox: deque[tuple[int, Any, Metrics]] = deque()
    while True:
        asked, requested = ports.stop_requested(), ports.requested()
        leaving = step >= plan.stop_at or asked is not None
        new = step > start  # what was restored is saved and evaluated already
        saving = new and (leaving or plan.save_at(step))
        evaluating = new and (step == plan.last_step or every(plan.evaluate_every, step))
        checking = saving or (step < plan.last_step and plan.check_at(step + 1))
        settling = saving or evaluating or checking or requested
        verdict: Decision = Keep()
        at = step  # of the verdict
        for at, batch, metrics in taken(inbox, keep=0 if settling else plan.lag):
            verdict = ports.judge(ports.record(at, batch, metrics))
            if not isinstance(verdict, Keep):
                break
        if isinstance(verdict, Keep) and requested and (why := ports.attend(step)) is not None:
            del state  # before the other one is read
            state, step = ports.taken_back(why)
            start = step
            continue
        if isinstance(verdict, Keep) and checking:
            at, verdict = step, ports.compare(state, step)
        if isinstance(verdict, Keep):
            if evaluating:
                ports.evaluate(step, state)
            if saving:
                ports.save(step, state)
            if step >= plan.last_step:
                return state, Finished()
            if leaving:
                return state, Paused(step, f"signal {asked}" if asked else f"--stop-at {plan.stop_at}")
            at, step = step, step + 1
            batch = ports.batch(step)
            state, verdict = ports.ready(state, batch, step)
            if isinstance(verdict, Keep):
                state, metrics = ports.advance(state, batch, step)
                inbox.append((step, batch, metrics))
                continue
        if isinstance(verdict, Stop):
            return state, Stopped(at, verdict.why)
        if (to := ports.before(verdict.first)) is None:
            return state, Stopped(at, f"{verdict.why}; there is no checkpoint before step {verdict.first}")
        inbox.clear()
        del state
        state, step = ports.go_back(verdict, to)
        start = step


def every(interval: int | None, step: int) -> bool:
    """Whether `step` is a multiple of `interval`; None is never."""
    return interval is not None and step % interval == 0


def taken(inbox: deque[tuple[int, Any, Metrics]], keep: int) -> Iterator[tuple[int, Any, Metrics]]:
    """The oldest entries, until `keep` are left."""
    while len(inbox) > keep:
        yield inbox.popleft()
