"""Steps of a run, executed again: from a checkpoint, with every event honoured, and held against their records."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxllm.assembly import Assembly, start_devices
from jaxllm.checkpoint.layout import DamagedCheckpointError, place_of
from jaxllm.checkpoint.manifest import state_digest
from jaxllm.checkpoint.names import array_records
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.core.errors import CheckFailed, RunError
from jaxllm.data.feed import BatchSource, Feed, to_devices
from jaxllm.data.store import Store
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.fold import Committed, present
from jaxllm.ledger.history import history
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.records import StepRecord
from jaxllm.optim.schedule import learning_rate
from jaxllm.origin import first_state
from jaxllm.parallel.shard import batch_sharding
from jaxllm.release.agreement import Agreement
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


@dataclass(frozen=True)
class Interval:
    """Steps start+1..stop of a lineage, and what it takes to execute any of them again. Opening it starts devices."""

    run: RunConfig
    folder: Path
    store: Store
    parts: Assembly
    events: list[Event]
    lineages: Lineages
    lineage: int | None
    start: int
    stop: int
    records: list[StepRecord]

    @classmethod
    def open(cls, run: RunConfig, folder: Path, start: int, stop: int, lineage: int | None) -> Self:
        """RunError: there is no checkpoint `start`, or some of the steps were not recorded."""
        events = read_journal(folder / "journal.jsonl")
        lineages = Lineages.of(events)
        records = _records(folder, lineages, start, stop, lineage)
        try:
            place = place_of(folder / "checkpoints", start, lineages.owner(start, lineage))
        except DamagedCheckpointError as err:
            raise CheckFailed(str(err)) from None
        if start != 0 and place is None:
            raise RunError(f"--from {start}: {no_checkpoint(folder, start, lineages, lineage)}")
        run, store = open_store(run, folder)
        parts = start_devices(run)
        parts.check_batches()
        return cls(run, folder, store, parts, events, lineages, lineage, start, stop, records)

    @cached_property
    def saved(self) -> dict[int, Committed]:
        """The journaled checkpoints of the lineage, from `start` on, by step."""
        found = present(self.events).checkpoints_of(self.lineage)
        return {c.step: c for c in found if self.start <= c.step <= self.stop}

    def kept(self, step: int) -> Path | None:
        """Where the checkpoint of a step lies, if it does; where it should, if its files do not tell whose it is."""
        base = self.folder / "checkpoints"
        try:
            return place_of(base, step, self.lineages.owner(step, self.lineage))
        except DamagedCheckpointError:
            return base  # who reads it finds and reports it

    def state_at(self, step: int, *, journaled: bool = True) -> State:
        """The state after a step: the first parameters for 0, else what the checkpoint holds.

        CheckFailed: its files are not what was saved; or, with `journaled`, it is not what the run went on from.
        """
        if step == 0:
            return first_state(self.run, self.parts)
        place = self.kept(step)
        assert place is not None, step
        abstract = self.parts.abstract_state
        try:
            restored = CheckpointReader(place).restore(step, abstract.items(), self.parts.digest)
        except DamagedCheckpointError as err:
            raise CheckFailed(str(err)) from None
        if journaled and (why := self.otherwise(step)) is not None:
            raise CheckFailed(f"{place}: checkpoint {step} is not what the run went on from: {why}")
        return abstract.with_items(restored.items)

    def otherwise(self, step: int) -> str | None:
        """How the checkpoint of a step differs from what was journaled; None if it does not."""
        place, recorded = self.kept(step), self.saved.get(step)
        if step == 0 or place is None or recorded is None:
            return None
        digest = CheckpointReader(place).manifest(step).state_digest
        if digest == recorded.digest:
            return None
        return f"its state is {digest[:12]}, journaled {recorded.digest[:12]}"

    def execute(
        self, state: State, first: int, last: int, by_record: Agreement, by_state: Agreement, report: Report
    ) -> tuple[State, int]:
        """Steps first+1..last from the state after `first`, held against their records, and the states after those
        that were saved: (the state after `last`, how many were saved)."""
        run, parts = self.run, self.parts
        stream, table = stream_of_run(run.data, run.seed, self.store, self.lineages.edits(self.lineage))
        # Faults of the data are in the data; transient ones are no part of it and do not come back.
        faults = Faults(run.faults, stream, table, lambda step: False)
        weigh = faults.weights if faults.of_batches else None
        feed = Feed(BatchSource(self.store, stream, table, run.data, parts.rows, None, weigh), first, run.io.prefetch)
        states = 0
        try:
            for record in (r for r in self.records if first < r.step <= last):
                report("replay", record.step - self.start, self.stop - self.start)
                if flips := faults.flips(record.step):
                    state = dataclasses.replace(state, params=flipped(state.params, flips, parts.mesh))
                state, again = self._again(state, next(feed), record)
                by_record.hold(record, again)
                if (saved := self.saved.get(record.step)) is not None:
                    states += 1
                    by_state.hold_state(record.step, self._off(saved, state, record.step - first))
        finally:
            feed.close()
        return state, states

    def _again(self, state: State, batch: Any, recorded: StepRecord) -> tuple[State, StepRecord]:
        run = self.run
        lr = np.float32(learning_rate(run.optimizer.schedule, batch.step - 1))
        numbers = [lr]
        if run.guard.spikes is not None and isinstance(run.guard.spikes.action, Refuse):
            # What the guard refused is refused again: its limit hung on steps before this interval.
            numbers.append(np.float32(-1.0 if recorded.refused else np.inf))
        arrays = to_devices(batch, batch_sharding(self.parts.mesh))
        state, metrics = self.parts.step(state, arrays, *numbers)
        jax.block_until_ready((state, metrics))  # on all devices, before another program begins on one
        host = jax.device_get(dataclasses.replace(metrics, norms={}, routing=None))
        stages = [s.name for s in run.data.stages]
        record, _, _ = step_record(host, batch, batch.lanes, lr, lineage=recorded.lineage, stages=stages)
        return state, record

    def digest(self, state: State) -> str:
        """The one number that says what a state is, as the journal has it."""
        items = state.items()
        return state_digest(array_records(items, self.parts.digest(items)))

    def _off(self, recorded: Committed, state: State, after: int) -> StateDeviation | None:
        if self.digest(state) == recorded.digest:
            return None
        digests = self.parts.digest(state.items())
        return deviation_of(self.folder, self.parts, recorded, state, digests, after)


def pieces(interval: Interval) -> Iterator[tuple[int, int]]:
    """The interval, cut at the journaled checkpoints that are kept."""
    cuts = [s for s in sorted(interval.saved) if interval.start < s < interval.stop and interval.kept(s) is not None]
    yield from zip([interval.start, *cuts], [*cuts, interval.stop], strict=True)


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
