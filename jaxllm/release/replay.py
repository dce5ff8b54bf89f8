"""`jaxllm replay`: an interval of a run executed again and held against its record. The run folder is only read."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.assembly import Assembly, start_devices
from jaxllm.checkpoint import fingerprint
from jaxllm.checkpoint.layout import place_of
from jaxllm.checkpoint.manifest import state_digest
from jaxllm.checkpoint.names import array_records
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.checkpoint.revision import source_revision
from jaxllm.core.config import essential
from jaxllm.core.errors import RunError
from jaxllm.data.feed import BatchSource, Feed, to_devices
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.fold import Committed, present
from jaxllm.ledger.history import history
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lineage import Lineages, Stretch
from jaxllm.ledger.records import StepRecord
from jaxllm.optim.schedule import learning_rate
from jaxllm.origin import first_state
from jaxllm.parallel.mesh import sizes
from jaxllm.parallel.shard import batch_sharding
from jaxllm.release.agreement import Agreement, Class, satisfies
from jaxllm.release.deviation import StateDeviation
from jaxllm.release.states import deviation_of
from jaxllm.run import RunConfig
from jaxllm.train.config import Refuse
from jaxllm.train.faults import Faults
from jaxllm.train.flip import flipped
from jaxllm.train.recording import step_record
from jaxllm.train.state import State
from jaxllm.workspace import no_checkpoint, open_store

Report = Callable[[str, int, int], None]
Event = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What came of a replay of steps first..last.

    changes: how this environment differs from the recorded ones. states: how many state digests were compared. reason:
    what explains the first difference, as far as it can be told; None where there is none.
    """

    first: int
    last: int
    asked: Class
    agreement: Agreement
    changes: tuple[str, ...]
    states: int
    reason: str | None

    @property
    def holds(self) -> bool:
        """Whether it is the class that was asked for, or better."""
        return satisfies(self.agreement.found, self.asked)


def replay_interval(
    run: RunConfig,
    folder: Path,
    start: int,
    stop: int,
    *,
    lineage: int | None = None,
    asked: Class | None = None,
    said: Callable[[str], None] = lambda line: None,
    report: Report = lambda phase, done, total: None,
) -> Replayed:
    """Execute steps start+1..stop of the run in `folder` again, from checkpoint `start` (0: from the first parameters).

    run: its config; the mesh may be another one. asked: None takes bitwise where this environment is the recorded one,
    else rounding. said: gets what a person should know before time is spent.
    RunError: there is no such checkpoint, or the interval was not recorded.
    """
    events = read_journal(folder / "journal.jsonl")
    lineages = Lineages.of(events)
    records = _records(folder, lineages, start, stop, lineage)
    reader = _reader(folder, lineages, start, lineage)
    run, store = open_store(run, folder)
    parts = start_devices(run)
    parts.check_batches()
    here = fingerprint.collect(sizes(parts.mesh), essential(run.compute))
    changes = _changes(events, lineages.path(lineage), start, stop, here)
    asked = asked or ("rounding" if changes else "bitwise")
    said(f"replay of steps {start + 1} to {stop} of {folder}, asked for: {asked}")
    for line in changes:
        said(f"  differs from the recorded environment: {line}")
    for line in _code(events):
        said(f"  {line}")
    stream, table = stream_of_run(run.data, run.seed, store, lineages.edits(lineage))
    # Faults of the data are in the data; transient ones are no part of it and do not come back.
    faults = Faults(run.faults, stream, table, lambda step: False)
    weigh = faults.weights if faults.of_batches else None
    feed = Feed(BatchSource(store, stream, table, run.data, parts.rows, None, weigh), start, run.io.prefetch)
    saved = {c.step: c for c in present(events).checkpoints_of(lineage) if start < c.step <= stop}
    agreement, states = Agreement(run.precision.compute), 0
    try:
        state = _state(run, parts, reader, start)
        for record in records:
            report("replay", record.step - start, stop - start)
            if flips := faults.flips(record.step):
                state = dataclasses.replace(state, params=flipped(state.params, flips, parts.mesh))
            state, again = _again(run, parts, state, next(feed), record)
            agreement.hold(record, again)
            if record.step in saved:
                states += 1
                agreement.hold_state(record.step, _off(folder, parts, saved[record.step], state, record.step - start))
    finally:
        feed.close()
    return Replayed(
        first=start + 1,
        last=stop,
        asked=asked,
        agreement=agreement,
        changes=tuple(changes),
        states=states,
        reason=_reason(agreement, changes),
    )


def _records(folder: Path, lineages: Lineages, start: int, stop: int, lineage: int | None) -> list[StepRecord]:
    if not 0 <= start < stop:
        raise RunError(f"--from {start} --to {stop}: write two steps, the second later than the first")
    if start < lineages.origin:
        raise RunError(f"--from {start}: {folder} is a fork and begins after step {lineages.origin}")
    found = [r for r in history(folder, lineage, lineages) if start < r.step <= stop]
    if [r.step for r in found] != list(range(start + 1, stop + 1)):
        there = f"up to step {found[-1].step}" if found else "none of them"
        raise RunError(f"steps {start + 1} to {stop} of {folder} are not all recorded: {there}; name recorded ones")
    return found


def _reader(folder: Path, lineages: Lineages, start: int, lineage: int | None) -> CheckpointReader | None:
    """Who has the checkpoint to start from; None for the first parameters."""
    if start == 0:
        return None
    owner = lineages.owner(start, lineage)
    place = place_of(folder / "checkpoints", start, owner)
    if place is not None:
        return CheckpointReader(place)
    raise RunError(f"--from {start}: {no_checkpoint(folder, start, lineages, lineage)}")


def _state(run: RunConfig, parts: Assembly, reader: CheckpointReader | None, start: int) -> State:
    if reader is None:
        return first_state(run, parts)
    abstract = parts.abstract_state
    return abstract.with_items(reader.restore(start, abstract.items(), parts.digest).items)


def _again(run: RunConfig, parts: Assembly, state: State, batch: Any, recorded: StepRecord) -> tuple[State, StepRecord]:
    lr = np.float32(learning_rate(run.optimizer.schedule, batch.step - 1))
    numbers = [lr]
    if run.guard.spikes is not None and isinstance(run.guard.spikes.action, Refuse):
        # What the guard refused is refused again: its limit hung on steps before this interval.
        numbers.append(np.float32(-1.0 if recorded.refused else np.inf))
    arrays = to_devices(batch, batch_sharding(parts.mesh))
    state, metrics = parts.step(state, arrays, *numbers)
    jax.block_until_ready((state, metrics))  # on all devices, before another program begins on one
    host = jax.device_get(dataclasses.replace(metrics, norms={}, routing=None))
    stages = [s.name for s in run.data.stages]
    record, _, _ = step_record(host, batch, batch.lanes, lr, lineage=recorded.lineage, stages=stages)
    return state, record


def _off(folder: Path, parts: Assembly, recorded: Committed, state: State, after: int) -> StateDeviation | None:
    items = state.items()
    digests = parts.digest(items)
    if state_digest(array_records(items, digests)) == recorded.digest:
        return None
    return deviation_of(folder, parts, recorded, state, digests, after)


def _changes(
    events: Sequence[Event], path: Iterable[Stretch], start: int, stop: int, here: fingerprint.Fingerprint
) -> list[str]:
    """How this environment differs from those in which the interval was recorded, along the path of a lineage."""
    found: list[str] = []
    for stretch in path:
        low, high = max(start + 1, stretch.first), stop if stretch.last is None else min(stop, stretch.last)
        sessions = [s for s in _sessions(events) if s[0] == stretch.lineage]
        for (_, first, environment), after in zip(sessions, [*sessions[1:], None], strict=True):
            if low <= high and first <= high and (after is None or after[1] > low):
                lines = fingerprint.differences(fingerprint.decode(environment), here)
                found += [line for line in lines if line not in found]
    return found


def _sessions(events: Iterable[Event]) -> list[tuple[int, int, Any]]:
    """(lineage, first step, environment) of each stretch that one process recorded, in order."""
    found: list[tuple[int, int, Any]] = []
    lineages = Lineages()
    for event in events:
        lineages = lineages.after(event)
        match event:
            case {"event": "start" | "resume", "environment": environment}:
                found.append((lineages.live, event.get("step", 0) + 1, environment))
            case {"event": "rollback", "step": step} if found:  # the guard's; after one by hand comes a resume
                found.append((lineages.live, step + 1, found[-1][2]))
            case _:
                pass
    return found


def _code(events: Iterable[Event]) -> list[str]:
    recorded = {str(e["source"]["commit"]) for e in events if e["event"] in ("start", "resume") and e.get("source")}
    now = str(source_revision().commit)
    return [f"the code is revision {now[:12]}, recorded was {r[:12]}" for r in sorted(recorded - {now})]


def _reason(agreement: Agreement, changes: list[str]) -> str | None:
    if agreement.first is None:
        return None
    if agreement.of_data:
        return "data: other tokens were consumed; check the store with `jaxllm data info RUN --verify`"
    if changes:
        return f"another environment: {'; '.join(changes)}"
    return "nothing that was recorded explains it: corruption, or something that is not deterministic"
