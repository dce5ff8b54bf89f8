"""Writes what a run did, and holds re-executed steps against what a killed process had already written."""

import hashlib
from pathlib import Path

import numpy as np

from jaxllm.ledger.journal import Journal
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

    def __init__(self, folder: Path, journal: Journal, *, lineage: int, positions: int, start: int) -> None:
        self._journal, self._lineage = journal, lineage
        self._steps = StepLog(folder / "steps")
        self._losses = LossLog(folder / "losses", positions=positions, lineage=lineage)
        self._known = {r.step: r for r in self._steps.recorded_after(lineage, start)}
        self.to_verify, self.verified, self.diverged = len(self._known), 0, 0

    def step(self, record: StepRecord, sums: np.ndarray, counts: np.ndarray) -> None:
        """One step, in order. `sums` float32, `counts` int32 [sequences] go to the positions from record.cursor on."""
        known = self._known.pop(record.step, None)
        changed = [] if known is None else compare(known, record)
        if known is not None and not changed:
            self.verified += 1
        else:
            if changed:
                self.diverged += 1
                self._journal.append("divergence", lineage=self._lineage, step=record.step, fields=changed)
            if record.refused:
                self._journal.append("refused", lineage=self._lineage, step=record.step)
            self._steps.append(record)
        self._losses.write(record.cursor, sums, counts)

    def durable(self) -> None:
        """Return once everything written so far would survive a power cut. Called before a checkpoint is named."""
        self._steps.sync()
        self._losses.flush()

    def close(self) -> None:
        """Durable, then closed."""
        self.durable()
        self._steps.close()
