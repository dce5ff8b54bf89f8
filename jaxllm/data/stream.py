"""What a run really consumes: position p of the stream -> a sample of the order.

The order knows nothing of what happens during a run. Events that skip or defer data (data/edits.py) change which sample
a position stands for, from a position on, and this is the one place that knows of them: every reader of the order
(feed, trace, find) goes through a Stream. Without edits, position p is sample p.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxllm.core.errors import DataError
from jaxllm.data.config import Data
from jaxllm.data.edits import Edit, Edits
from jaxllm.data.order import Order, Rows, SourceSpan, build_order
from jaxllm.data.permutation import Integers
from jaxllm.data.removal import Removed
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.windows import windows_in


class Use(NamedTuple):
    """One time that a window is consumed."""

    position: int
    epoch: int
    window: int


class Stream:
    """The effective stream of a run: positions 0..total-1."""

    def __init__(self, order: Order, edits: Edits, removed: Removed) -> None:
        """`order` has the samples that were planned and, behind them, what `edits` drew instead of skipped ones;
        `removed` says which of their tokens are not trained on."""
        self.order, self.edits, self.removed = order, edits, removed

    @property
    def sources(self) -> tuple[SourceSpan, ...]:
        """What Rows.source counts."""
        return self.order.sources

    @property
    def total(self) -> int:
        """Positions in the stream."""
        return self.edits.total

    def samples(self, positions: Integers) -> np.ndarray:
        """The samples at any positions, int64 [N]. IndexError outside 0..total-1."""
        position_N = np.atleast_1d(np.asarray(positions, np.int64))
        if position_N.size and not (position_N.min() >= 0 and position_N.max() < self.total):
            raise IndexError(f"positions {position_N.min()} to {position_N.max()} do not lie in 0..{self.total - 1}")
        return self.edits.samples(position_N)

    def rows(self, positions: Integers) -> Rows:
        """The rows at any positions, in the order asked."""
        return self.order.rows(self.samples(positions))

    def positions_of(self, sample: int) -> list[int]:
        """Every position at which a sample is consumed: none if it was skipped."""
        position = self.edits.position(sample)
        return [] if position is None else [position]

    def uses(self, source: int, windows: Integers) -> list[Use]:
        """Every time that any of these windows of source number `source` is consumed, in the order of the stream."""
        found = self.order.uses(source, windows)
        return sorted(
            Use(position, epoch, window)
            for sample, epoch, window in zip(
                found.sample.tolist(), found.epoch.tolist(), found.window.tolist(), strict=True
            )
            for position in self.positions_of(sample)
        )


def stream_of_run(data: Data, seed: int, store: Store, edits: Iterable[Edit] = ()) -> tuple[Stream, StepTable]:
    """Stream and steps of a run over a store, with the edits that its journal knows of.

    DataError if the store is not the one that the run pinned, LedgerError if the edits are of another run.
    """
    if data.manifest is not None and store.manifest_sha256 != data.manifest:
        raise DataError(
            f"the store has manifest {store.manifest_sha256[:12]}, but the run was started on {data.manifest[:12]}; "
            f"bring that store back"
        )
    windows = {name: windows_in(reader.tokens, data.seq_len, data.windows) for name, reader in store.sources.items()}
    table = StepTable(data.stages)
    placed = Edits(edits, table)
    return Stream(build_order(data, seed, windows, placed.extra), placed, Removed(data.without, store)), table
