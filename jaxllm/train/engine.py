"""The loop's ports for one process: feed, compiled step, records, checkpoints, observers."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import numpy as np

from jaxllm.data.batch import HostBatch
from jaxllm.data.feed import Feed
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.recorder import Recorder
from jaxllm.ledger.records import StepRecord
from jaxllm.ledger.scores import Score
from jaxllm.optim.config import Schedule
from jaxllm.optim.schedule import learning_rate
from jaxllm.parallel import processes
from jaxllm.train.clock import Clock, Pace
from jaxllm.train.faults import Faults
from jaxllm.train.flip import flipped
from jaxllm.train.guard import Back, Decision, Judge, Keep, Note
from jaxllm.train.observe import Experts, Observation, Observer
from jaxllm.train.recording import step_record
from jaxllm.train.saver import Saver
from jaxllm.train.selfcheck import Checker
from jaxllm.train.state import Metrics, State
from jaxllm.train.tally import Tally
from jaxllm.train.watchdog import Watchdog


@dataclass
class Fed:
    """A batch on its way through the loop. The arrays on the devices are let go once the step is dispatched.

    finished: when its step was, by time.perf_counter, as far as anybody looked.
    """

    host: HostBatch
    waited: float
    arrays: Mapping[str, jax.Array] | None
    told: Any = None  # to the other processes, once the step is dispatched
    finished: float | None = None


class Rewinding(Protocol):
    """Who brings an earlier state back."""

    def before(self, step: int) -> int | None: ...
    def go_back(self, engine: "Engine", back: Back, to: int) -> tuple[State, int]: ...
    def reopen(self, engine: "Engine") -> tuple[State, int]: ...


class Attending(Protocol):
    """Who carries out what a person asks for. `attend`: why, if the run is to be taken up where it went back to."""

    def attend(self, engine: "Engine", step: int) -> str | None: ...


def noted_key(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes an event the same as one that was journaled before."""
    return event["event"], event["lineage"], event["step"], event.get("what") if event["event"] == "selfcheck" else None


@dataclass(kw_only=True)
class Engine:
    """Implements jaxllm.train.loop.Ports.

    step: the compiled step. place: process-local rows -> global device arrays. stages: stage names in order.
    flops_per_token counts forward and backward; peak is FLOP/s of all devices together.
    """

    feed: Feed
    judging: Judge
    place: Callable[[HostBatch], Mapping[str, jax.Array]]
    step: jax.stages.Wrapped
    schedule: Schedule
    stages: Sequence[str]
    journaled_stages: set[str]
    lineages: Lineages
    recorder: Recorder
    journal: Journal
    saver: Saver
    rewinding: Rewinding
    attending: Attending
    observers: Sequence[Observer]
    scores: Callable[[Any], list[Score]]
    tally: Tally
    watchdog: Watchdog
    clock: Clock
    pace: Pace
    flops_per_token: float
    peak: float
    seq_len: int
    profile: tuple[int, int] | None
    trace_folder: str
    norms_every: int
    limited: bool  # the step is told the gradient norm above which it refuses its update
    waits: bool  # for every step: on CPUs the host would take time from it, and two steps need twice the memory
    last_scores: list[Score] | None = None
    faults: Faults | None = None  # injected on purpose
    checker: Checker | None = None  # of silent corruption
    noted: set[tuple[Any, ...]] = field(default_factory=set)  # `noted_key` of what is in the journal
    checking_mesh: jax.sharding.Mesh | None = None  # where bits are flipped
    compiled_for: set[int] = field(default_factory=set)
    tracing: bool = False

    def batch(self, step: int) -> Fed:
        """The batch of `step`, on the devices. A new stage is journaled when its first batch is taken."""
        self.watchdog.watch(step)
        began = time.perf_counter()
        host = next(self.feed)
        waited = time.perf_counter() - began
        if host.step != step:
            raise AssertionError(f"the feed gave step {host.step} where {step} was due")
        stage = self.stages[host.stage]
        if stage not in self.journaled_stages:
            self.journaled_stages.add(stage)
            self.journal.append("stage", lineage=self.lineages.owner(step), step=step, stage=stage, cursor=host.cursor)
        return Fed(host, waited, self.place(host))

    def compare(self, state: State, step: int) -> Decision:
        """Whether the replicas of the state after `step` are the same, where the config has a self-check."""
        if self.checker is None:
            return Keep()
        with self.clock.phase("self-check"), self.watchdog.resting():
            found = self.checker.replicas(state)
        self.pace.forget()
        return self._found(step, step, "replicas differ", found)

    def ready(self, state: State, batch: Fed, step: int) -> tuple[State, Decision]:
        """The state as update `step` finds it, and what the self-check says of its gradient."""
        flips = [] if self.faults is None else self.faults.flips(step)
        due = self.checker is not None and self.checker.due(step)
        if not flips and not due:
            return state, Keep()
        once = None
        with self.clock.phase("self-check"), self.watchdog.resting():
            if due and self.checker is not None:
                once = self.checker.gradient(state, batch.arrays)
            if flips and self.checking_mesh is not None:
                jax.block_until_ready(state)
                state = replace(state, params=flipped(state.params, flips, self.checking_mesh))
                self._note_faults(self.lineages.owner(step), step)
            if due and self.checker is not None and once is not None:
                found = self.checker.differing(once, self.checker.gradient(state, batch.arrays))
        self.pace.forget()
        if not due:
            return state, Keep()
        return state, self._found(step, step - 1, "the gradient came out otherwise the second time", found)

    def _found(self, step: int, last: int, what: str, fields: list[str]) -> Decision:
        """What follows from a difference found at `step`; last: the last step that was executed."""
        if not fields or self.checker is None:
            return Keep()
        self._note(self.lineages.owner(step), Note("selfcheck", {"step": step, "what": what, "fields": fields}))
        return self.checker.verdict(self.judging, step, last, what, fields)

    def advance(self, state: State, batch: Fed, step: int) -> tuple[State, Metrics]:
        """Dispatch one step; returns before it is computed, except where the engine waits."""
        if self.profile is not None and step == self.profile[0]:
            jax.profiler.start_trace(self.trace_folder)
            self.tracing = True
        numbers = [np.float32(learning_rate(self.schedule, step - 1))]
        if self.limited:
            numbers.append(np.float32(self.judging.norm_limit(step)))
        new = batch.host.sequences not in self.compiled_for
        with self.clock.phase("compilation" if new else "dispatch"), self.watchdog.resting() if new else nullcontext():
            if new and processes.count() > 1:
                # Nobody waits in a collective for one that still compiles: some give up after 30 s.
                self.step.lower(state, batch.arrays, *numbers).compile()
                processes.meet()
            result: tuple[State, Metrics] = self.step(state, batch.arrays, *numbers)
            batch.told = self.tally.told(batch.host.lanes)
        if new:
            self.compiled_for.add(batch.host.sequences)
            self.pace.forget()
        batch.arrays = None
        if self.waits:
            jax.block_until_ready(result)
            batch.finished = time.perf_counter()
        return result

    def record(self, step: int, batch: Fed, metrics: Metrics) -> StepRecord:
        """Fetch a step's metrics, write its record, tell the observers."""
        if step % self.norms_every:
            metrics = replace(metrics, norms={}, routing=None)
        self.watchdog.watch(step)
        host = jax.device_get(metrics)
        finished = time.perf_counter() if batch.finished is None else batch.finished
        lanes = self.tally.heard(batch.told)
        if self.profile is not None and step == self.profile[1]:
            self._stop_trace()
        lr = np.float32(learning_rate(self.schedule, step - 1))
        record, loss_B, tokens_B = step_record(
            host, batch.host, lanes, lr, lineage=self.lineages.owner(step), stages=self.stages
        )
        self._note_faults(record.lineage, record.step)
        again = self.recorder.step(record, loss_B, tokens_B)
        self.saver.announce()
        self.pace.mark(batch.host.sequences * self.seq_len, batch.waited, again=again, at=finished)
        self._tell(record, host, finished)
        return record

    def _note_faults(self, lineage: int, step: int) -> None:
        if self.faults is not None and (found := self.faults.at(step)):
            self._note(lineage, Note("fault", {"step": step, "what": "; ".join(found)}))

    def _note(self, lineage: int, note: Note) -> None:
        key = noted_key({"event": note.event, "lineage": lineage, **note.fields})
        if key in self.noted:
            return
        self.noted.add(key)
        self.journal.append(note.event, lineage=lineage, **note.fields)
        for observer in self.observers:
            observer.noticed(note)

    def _tell(self, record: StepRecord, host: Metrics, finished: float) -> None:
        speed = self.pace.tokens_per_second
        seen = Observation(
            record=record,
            time=time.time() - (time.perf_counter() - finished),
            seconds_per_step=self.pace.seconds_per_step,
            tokens_per_second=speed,
            tokens_per_second_per_device=None if speed is None else speed / jax.device_count(),
            mfu=None if speed is None else speed * self.flops_per_token / self.peak,
            waiting_share=self.pace.waiting_share,
            norms=jax.tree.map(np.asarray, host.norms),
            experts=None if host.routing is None else Experts.of(*map(np.asarray, host.routing)),
        )
        for observer in self.observers:
            observer.stepped(seen)

    def judge(self, record: StepRecord) -> Decision:
        """The guard's verdict; what it noticed is journaled, once."""
        verdict = self.judging.judge(record)
        for note in verdict.notes:
            self._note(record.lineage, note)
        return verdict

    def before(self, step: int) -> int | None:
        """The newest step before `step` whose state can be had again."""
        self.saver.wait()  # what is still being written counts
        return self.rewinding.before(step)

    def go_back(self, back: Back, to: int) -> tuple[State, int]:
        """(state, step) from which the run goes on, as a new lineage."""
        return self._back(lambda: self.rewinding.go_back(self, back, to), back.why)

    def requested(self) -> bool:
        """Whether a person asks for something. The same at all processes."""
        return self.tally.called

    def attend(self, step: int) -> str | None:
        """Carry it out, after `step`. Why, if that takes the run back: `taken_back` has where it goes on."""
        with self.clock.phase("requests"), self.watchdog.resting():
            self.saver.wait()  # what is still being written counts
            self.recorder.durable()
            why = self.attending.attend(self, step)
            self.tally.attended()
        self.pace.forget()
        return why

    def taken_back(self, why: str) -> tuple[State, int]:
        """(state, step) from which the run goes on, which a person has taken back."""
        return self._back(lambda: self.rewinding.reopen(self), why)

    def _back(self, go: Callable[[], tuple[State, int]], why: str) -> tuple[State, int]:
        with self.clock.phase("going back"), self.watchdog.resting():
            self._stop_trace()
            self.recorder.durable()
            state, step = go()
            for observer in self.observers:
                observer.went_back(step, why)
        self.pace.forget()
        return state, step

    def save(self, step: int, state: State) -> None:
        """Save in the background; records are durable first."""
        with self.clock.phase("saving"), self.watchdog.resting():
            self.saver.save(step, state)
            for observer in self.observers:
                observer.saved(step)
        self.pace.forget()

    def evaluate(self, step: int, state: State) -> None:
        """Held-out scores of the parameters after `step`."""
        with self.clock.phase("evaluation"), self.watchdog.resting():
            self.last_scores = self.scores(state.params)
        for observer in self.observers:
            observer.evaluated(step, self.last_scores)
        self.pace.forget()

    def stop_requested(self) -> str | None:
        """The name of the signal that asked to stop."""
        return self.tally.asked

    def close(self) -> None:
        """Write the trace that is still open; journal what has been committed."""
        self._stop_trace()
        self.saver.wait()

    def _stop_trace(self) -> None:
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
