"""The step records of a run as columns: the history that it stands on, and every lineage that was left. No jax."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.records import StepRecord, read_steps
from jaxllm.report.columns import Columns

NUMBERS = ("loss", "grad_norm", "lr")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """live: along the live lineage. left: of other lineages, where the run does not stand on them. ahead: steps of a
    lineage that the journal does not know of, being older than they are. sequences: of the live steps."""

    live: Columns
    left: Mapping[int, Columns]
    ahead: int
    sequences: int

    @property
    def last(self) -> int | None:
        """The newest live step, None if there is none."""
        return self.live.step[-1] if self.live else None

    def last_of(self, lineage: int) -> int | None:
        """The newest step that was left with a lineage."""
        return self.left[lineage].step[-1] if lineage in self.left else None


def read_recorded(folder: Path, lineages: Lineages) -> Recorded:
    """All of steps/, verified. LedgerError names the step at which it does not hold. Memory: a few numbers per step."""
    return recorded(read_steps(folder / "steps"), lineages)


def recorded(records: Iterable[StepRecord], lineages: Lineages) -> Recorded:
    """Records in the order in which they were made."""
    live, left, ahead, sequences = Columns(*NUMBERS), dict[int, Columns](), 0, 0
    path = lineages.path()
    for record in records:
        if record.lineage > lineages.live:
            ahead += 1
            continue
        stands = any(
            s.lineage == record.lineage and s.first <= record.step and (s.last is None or record.step <= s.last)
            for s in path
        )
        side = live if stands else left.setdefault(record.lineage, Columns(*NUMBERS))
        side.add(record.step, (record.loss, record.grad_norm, record.lr))
        sequences += record.sequences if stands else 0
    return Recorded(live=live, left=left, ahead=ahead, sequences=sequences)
