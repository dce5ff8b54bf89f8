"""Faults that are injected on purpose (RunConfig.faults), for tests and for people who want to see it. No jax.

A fault of the data belongs to samples: to those that the plan gave to its step, wherever edits of the stream move them.
A transient one belongs to an update of lineage 0, like a glitch: it does not come back after going back.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, assert_never

from jaxllm.data.steps import StepTable
from jaxllm.data.stream import Stream
from jaxllm.train.config import Fault, HugeBatch, NanBatch

if TYPE_CHECKING:
    import numpy as np


class Faults:
    """What goes wrong in a run, by step."""

    def __init__(
        self, faults: Iterable[Fault], stream: Stream, table: StepTable, glitches: Callable[[int], bool]
    ) -> None:
        """glitches: step -> whether transient faults strike there."""
        self._faults = tuple(faults)
        self._stream, self._table, self._glitches = stream, table, glitches

    def weights(self, step: int, positions: "np.ndarray") -> "np.ndarray":
        """float32 [N]: by what the last hidden states of these rows of a step are multiplied; 1 where all is well."""
        import numpy as np

        weights = np.ones(len(positions), np.float32)
        for fault in self._faults:
            weights[self._struck(fault, step, positions)] = _factor(fault)
        return weights

    def at(self, step: int) -> list[str]:
        """What goes wrong at a step, for people."""
        import numpy as np

        first, count, _ = self._table.span(step)
        positions = np.arange(first, first + count)
        found = []
        for fault in self._faults:
            if rows := int(self._struck(fault, step, positions).sum()):
                found.append(f"{_words(fault)} in {rows} of {count} sequences")
        return found

    def _struck(self, fault: Fault, step: int, positions: "np.ndarray") -> "np.ndarray":
        """bool [N]: which rows a fault strikes."""
        import numpy as np

        if fault.transient:
            return np.full(len(positions), step == fault.step and self._glitches(step))
        first, count, _ = self._table.span(fault.step)
        samples = self._stream.samples(positions)
        struck: np.ndarray = (samples >= first) & (samples < first + count)
        return struck


def _factor(fault: Fault) -> float:
    match fault:
        case NanBatch():
            return float("nan")
        case HugeBatch(factor=factor):
            return factor
        case _:
            assert_never(fault)


def _words(fault: Fault) -> str:
    match fault:
        case NanBatch():
            return "hidden states are NaN"
        case HugeBatch(factor=factor):
            return f"hidden states are {factor:g} times too large"
        case _:
            assert_never(fault)
