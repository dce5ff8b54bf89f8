"""Edits of the stream: what skipping and deferring data do to the order of what is left. Pure integer arithmetic.

An edit takes a range of positions out of one stage. What comes behind it in that stage moves up, and the places that
become free at the stage's end go to the samples that were taken out (`defer`: what K2 did with two of its chunks) or to
fresh samples, which are drawn with that stage's mixture behind everything that was planned (`skip`). So steps, batch
sizes, positions and stages stay where they are, every other sample is consumed exactly once, and nothing before the
range changes: an edit may be made in the middle of a run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxllm.core.errors import LedgerError, RunError
from jaxllm.data.steps import StepTable

if TYPE_CHECKING:  # the journal is read in milliseconds, without it
    import numpy as np

Kind = Literal["skip", "defer"]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Positions first..first+count-1, as the stream was before this edit, are taken out."""

    kind: Kind
    first: int
    count: int


@dataclass(frozen=True)
class _Move:
    """An edit in its place: it takes [first, first + count) out of a stage that ends before position `end`.

    spare: number of the first fresh sample that fills the end; None if what was taken out does.
    """

    first: int
    count: int
    end: int
    spare: int | None

    def before(self, at: "np.ndarray") -> "np.ndarray":
        """Where what is at positions stood before this edit, or its number as a fresh sample. int64 [N]."""
        import numpy as np

        inside = (at >= self.first) & (at < self.end)
        freed = inside & (at >= self.end - self.count)
        target = self.first if self.spare is None else self.spare
        return np.where(freed, at - (self.end - self.count) + target, np.where(inside, at + self.count, at))


class Edits:
    """All edits of a stream, in the order in which they were made: position -> planned or fresh sample, and back.

    `extra` lists what was skipped, as (stage, samples): the fresh samples are numbered `total`, `total + 1`, ... in
    that order.
    """

    def __init__(self, edits: Iterable[Edit], table: StepTable) -> None:
        """LedgerError for an edit that does not lie within one stage of `table`."""
        self.total = table.positions
        self.extra: list[tuple[int, int]] = []
        self._moves: list[_Move] = []
        spare = self.total
        for edit in edits:
            stage, end = _stage_of(edit, table)
            fresh = edit.kind == "skip"
            self._moves.append(_Move(edit.first, edit.count, end, spare if fresh else None))
            if fresh:
                self.extra.append((stage, edit.count))
                spare += edit.count

    def samples(self, positions: "np.ndarray") -> "np.ndarray":
        """The samples at positions, int64 [N]."""
        import numpy as np

        at = positions.astype(np.int64, copy=True)
        # The last edit was made on the stream that the ones before it had left.
        for move in reversed(self._moves):
            at = move.before(at)
        return at

    def deferred(self, positions: "np.ndarray") -> "np.ndarray":
        """bool [N]: whether what is at positions was put there by a deferral."""
        import numpy as np

        at, found = positions.astype(np.int64, copy=True), np.zeros(len(positions), bool)
        for move in reversed(self._moves):
            freed = (at >= move.end - move.count) & (at < move.end)
            found |= freed & (move.spare is None)
            at = move.before(at)
        return found

    def position(self, sample: int) -> int | None:
        """Where a sample is consumed; None if it was skipped."""
        at = sample
        for move in self._moves:
            freed = move.end - move.count
            if move.spare is not None and move.spare <= at < move.spare + move.count:
                at = freed + at - move.spare
            elif move.first <= at < move.first + move.count:
                if move.spare is not None:
                    return None
                at = freed + at - move.first
            elif move.first + move.count <= at < move.end:
                at -= move.count
        return at


def edits_of_steps(table: StepTable, kind: Kind, first_step: int, last_step: int) -> tuple[Edit, ...]:
    """The edits that take the data of steps first_step..last_step out of the stream, one for each stage among them.

    They hold one after the other, in the order given. RunError if a stage would keep nothing in front of its end to go
    on with: what was deferred would come right back.
    """
    if not 1 <= first_step <= last_step <= table.steps:
        raise RunError(f"steps {first_step}:{last_step} do not lie in 1..{table.steps}; write A:B with A <= B")
    edits: list[Edit] = []
    first = first_step
    while first <= last_step:
        span = table.span(first)
        end = table.stage_end(span.stage)
        last = min(last_step, end)
        if last == end and kind == "defer":
            raise RunError(
                f"steps {first}:{last} are the end of their stage, so deferring them to its end changes nothing; "
                f"skip them, or name steps before {first}"
            )
        stop = table.consumed(last)
        edits.append(Edit(kind=kind, first=span.first, count=stop - span.first))
        first = last + 1
    return tuple(edits)


def encode_edits(edits: Iterable[Edit]) -> list[dict[str, Any]]:
    """As an event holds them."""
    return [{"kind": e.kind, "first": e.first, "count": e.count} for e in edits]


def decode_edits(raw: Sequence[Mapping[str, Any]], where: str) -> tuple[Edit, ...]:
    """From an event. LedgerError names `where` if they are not what is written there."""
    found = []
    for item in raw:
        match item:
            case {"kind": "skip" | "defer" as kind, "first": int(first), "count": int(count), **rest} if not rest:
                found.append(Edit(kind=kind, first=first, count=count))
            case _:
                raise LedgerError(f"{where}: {item!r} is no edit of the stream; restore the file from a copy")
    return tuple(found)


def _stage_of(edit: Edit, table: StepTable) -> tuple[int, int]:
    """(index, end) of the stage that an edit lies in; the end is the position after its last one."""
    if edit.count >= 1 and 0 <= edit.first < table.positions:
        stage = table.span(table.step_of(edit.first)[0]).stage
        end = table.consumed(table.stage_end(stage))
        if edit.first + edit.count <= end:
            return stage, end
    raise LedgerError(
        f"an edit of the stream takes out {edit.count} positions from {edit.first} on, which do not lie in one stage; "
        f"the journal belongs to another config"
    )
