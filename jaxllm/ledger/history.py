"""The records of a run as one line of history: a lineage and, up to where it left them, those that it came from."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.data.steps import StepTable
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.losses import NEVER, LossLog
from jaxllm.ledger.records import StepRecord, read_steps

if TYPE_CHECKING:
    import numpy as np


def lineages_of(folder: Path) -> Lineages:
    """The lineages of the run in `folder`; one that has not been started has lineage 0 alone."""
    journal = folder / "journal.jsonl"
    return Lineages.of(read_journal(journal)) if journal.is_file() else Lineages()


def history(folder: Path, lineage: int | None = None, lineages: Lineages | None = None) -> Iterator[StepRecord]:
    """The records along the path of a lineage (None: the live one), by step, each once, by its last record.

    LedgerError: the records or the journal do not hold, or there is no such lineage.
    """
    known = lineages_of(folder) if lineages is None else lineages
    known.path(lineage)
    for record in read_steps(folder / "steps"):
        if known.owner(record.step, lineage) == record.lineage:
            yield record


def losses_along(
    folder: Path, table: StepTable, lineages: Lineages, start: int, stop: int, lineage: int | None = None
) -> "tuple[np.ndarray, np.ndarray]":
    """(float32 sums in nats, int32 label counts) of positions start..stop-1 along the path of a lineage; NaN and NEVER
    where nothing was recorded. LedgerError if a chunk does not have its checksum."""
    import numpy as np

    sums, counts = np.full(stop - start, np.nan, np.float32), np.full(stop - start, NEVER, np.int32)
    for stretch in lineages.path(lineage):
        low = max(start, table.consumed(min(stretch.first - 1, table.steps)))
        high = stop if stretch.last is None else min(stop, table.consumed(stretch.last))
        if low < high:
            log = LossLog(folder / "losses", positions=table.positions, lineage=stretch.lineage)
            sums[low - start : high - start], counts[low - start : high - start] = log.read(low, high)
    return sums, counts
