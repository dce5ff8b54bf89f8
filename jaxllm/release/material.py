"""What a release is made from: a run at one moment, its store, the checkpoints that were chosen. No jax."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxllm.data.steps import StepTable
from jaxllm.ledger.fold import Present, present
from jaxllm.ledger.journal import Event
from jaxllm.ledger.records import StepRecord, read_steps
from jaxllm.release.environments import Stay, stays
from jaxllm.release.layout import RECORD
from jaxllm.release.metrics import Measured
from jaxllm.release.selection import Chosen
from jaxllm.release.snapshot import Moment
from jaxllm.release.spans import Streams
from jaxllm.run import RunConfig


@dataclass(frozen=True)
class Order:
    """What was asked for. extras: of layout.EXTRAS; rounding: parameters may be rounded to dtype."""

    extras: tuple[str, ...]
    dtype: str
    rounding: bool


@dataclass(frozen=True)
class Material:
    """folder: of the run; release: the folder that is being filled, whose record/ is the run's at `moment`."""

    run: RunConfig
    folder: Path
    release: Path
    moment: Moment
    events: list[Event]
    chosen: tuple[Chosen, ...]
    streams: Streams
    order: Order

    @property
    def record(self) -> Path:
        """The copied record: what is derived from the record is derived from this."""
        return self.release / RECORD

    @property
    def table(self) -> StepTable:
        """Steps and positions."""
        return self.streams.table

    @cached_property
    def now(self) -> Present:
        """What the run had come to."""
        return present(self.events)

    @cached_property
    def newest(self) -> dict[int, StepRecord]:
        """Lineage -> its last record."""
        found: dict[int, StepRecord] = {}
        for record in read_steps(self.record / "steps"):
            if record.lineage not in found or record.step > found[record.lineage].step:
                found[record.lineage] = record
        return found

    @cached_property
    def steps(self) -> int:
        """The last step along the live path: recorded in the live lineage, or else the one that it goes on from."""
        lineages = self.now.lineages
        newest = self.newest.get(lineages.live)
        return lineages.branches[-1].step if newest is None else newest.step

    @cached_property
    def stays(self) -> list[Stay]:
        """The processes behind the records."""
        return stays(self.events, {lineage: record.step for lineage, record in self.newest.items()})

    @cached_property
    def measured(self) -> Measured:
        """What was measured beside the records."""
        return Measured(self.record, self.events, self.now.lineages, self.table, self.run.data.seq_len)
