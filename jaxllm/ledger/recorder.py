"""Writes what a run did, and holds re-executed steps against what a killed process had already written."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxllm.core.errors import LedgerError
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.losses import LossLog
from jaxllm.ledger.records import StepLog, StepRecord, compare


def losses_digest(sums: np.ndarray, counts: np.ndarray) -> str:
    """16 hex digits over the float32 sums and int32 counts of a step's sequences, in row order."""
    data = np.ascontiguousarray(sums, "<f4").tobytes() + np.ascontiguousarray(counts, "<i4").tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


class Recorder:
    """The one writer of a run's step records and per-sequence losses.

    `verified` counts steps that were executed again after a resume and came out as recorded, `diverged` those that did
    not: each of these is an event, and its new record is appended beside the old one, never in its place.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        *,
        lineages: Lineages,
        positions: int,
        start: int,
        head: str | None,
        warn: Callable[[str], None],
    ) -> None:
        """start: updates finished. head: the record after which that state was saved, None if it is not known."""
        self._journal, self._lineages, self._warn = journal, lineages, warn
        self._steps = StepLog(folder / "steps")
        self._losses_folder, self._positions = folder / "losses", positions
        self._losses: dict[int, LossLog] = {}
        self._known = {r.step: r for r in self.recorded_after(start)}
        self._refused = {(e["lineage"], e["step"]) for e in journal.events if e["event"] == "refused"}
        self.verified, self.diverged = 0, 0
        if start > lineages.origin and self._steps.at(lineages.owner(start), start) is None:
            raise LedgerError(f"{folder / 'steps'} has no record of step {start}, which a checkpoint was saved after")
        if head is not None and not self._steps.holds(head):
            raise LedgerError(
                f"{folder / 'steps'} does not hold the record {head} that checkpoint {start} was saved after; "
                f"bring the records of this run back"
            )

    @property
    def head(self) -> str:
        """The hash of the last step record."""
        return self._steps.head

    @property
    def furthest(self) -> int:
        """The last step that an earlier process recorded and this one has not come to yet; 0 if there is none."""
        return max(self._known, default=0)

    def recorded_after(self, step: int) -> list[StepRecord]:
        """The records later than `step` along the live lineage, by step. Reads no further back than it has to."""
        found: list[StepRecord] = []
        for stretch in self._lineages.path():
            if stretch.last is None or stretch.last > step:
                after = self._steps.recorded_after(stretch.lineage, max(step, stretch.first - 1))
                found += [r for r in after if stretch.last is None or r.step <= stretch.last]
        return found

    def step(self, record: StepRecord, sums: np.ndarray, counts: np.ndarray) -> bool:
        """One step, in order, of the lineage that owns it. `sums` float32, `counts` int32 [sequences] go to the
        positions from record.cursor on.

        Whether an earlier process had recorded it already.
        """
        known = self._known.pop(record.step, None)
        changed = [] if known is None else compare(known, record)
        # Events before their record: a process that is killed in between executes the step again.
        if changed:
            self.diverged += 1
            self._journal.append("divergence", lineage=record.lineage, step=record.step, fields=changed)
            self._warn(f"step {record.step} came out otherwise than recorded, in {', '.join(changed)}")
        if record.refused and (record.lineage, record.step) not in self._refused:
            self._refused.add((record.lineage, record.step))
            self._journal.append("refused", lineage=record.lineage, step=record.step)
        if known is not None and not changed:
            self.verified += 1
        else:
            self._steps.append(record)
        self._losses_of(record.lineage).write(record.cursor, sums, counts)
        return known is not None

    def durable(self) -> None:
        """Return once everything written so far would survive a power cut. Called before a checkpoint is named."""
        self._steps.sync()
        for losses in self._losses.values():
            losses.flush()

    def close(self) -> None:
        """Durable, then closed."""
        self.durable()
        self._steps.close()

    def _losses_of(self, lineage: int) -> LossLog:
        if lineage not in self._losses:
            self._losses[lineage] = LossLog(self._losses_folder, positions=self._positions, lineage=lineage)
        return self._losses[lineage]
