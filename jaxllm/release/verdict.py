"""What pieces of an interval, each executed again from its own recorded checkpoint, say about a divergence. No jax.

A piece that begins with what was saved inherits nothing from the pieces before it. So its steps tell whether they
follow from its checkpoint, the state that it ends with whether the next checkpoint follows from them, and two pieces
side by side on which side of the checkpoint between them something was changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "holds",
    "damaged",
    "checkpoint",
    "journal",
    "record",
    "once",
    "before",
    "persistent",
    "several",
    "open",
]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Steps first+1..last, from checkpoint `first`.

    begins: 'as journaled'; 'otherwise', if the checkpoint holds another state than the journal says; 'damaged', if its
    files are not what was saved, as `why` says: nothing was executed then. records: (step, fields) of the first step
    that was recorded otherwise, beyond the class asked for; None if there is none. ends: whether the state after
    `last` is the journaled one, to within that class; None if the journal knows of none. saved: whether it is, to the
    bit, what the checkpoint on the disk holds.
    """

    first: int
    last: int
    begins: Literal["as journaled", "otherwise", "damaged"] = "as journaled"
    why: str | None = None
    records: tuple[int, tuple[str, ...]] | None = None
    ends: bool | None = None
    saved: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing of it is other than recorded."""
        return self.begins == "as journaled" and self.records is None and self.ends is not False

    @property
    def steps(self) -> int:
        """How many were executed."""
        return 0 if self.begins == "damaged" else self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What it comes to. step: the first that differs, between the checkpoints `between`; said: for people."""

    kind: Kind
    said: str
    step: int | None = None
    fields: tuple[str, ...] = ()
    between: tuple[int, int] | None = None


def enough(pieces: Sequence[Piece]) -> bool:
    """Whether more pieces would say nothing more about the first divergence: one behind it holds, or two do not."""
    bad = next((i for i, p in enumerate(pieces) if not p.holds), None)
    if bad is None:
        return False
    behind = pieces[bad + 1 :]
    return any(p.holds for p in behind) or len(behind) == 2


def judge(pieces: Sequence[Piece]) -> Verdict:
    """pieces: neighbours, in order, as many as `enough` asked for or as there are."""
    bad = next((i for i, p in enumerate(pieces) if not p.holds), None)
    if bad is None:
        return Verdict(kind="holds", said="every piece follows from its checkpoint and leads to the next one")
    piece, behind = pieces[bad], pieces[bad + 1 :]
    after = behind[0] if behind else None
    between = (piece.first, piece.last)
    if piece.begins == "damaged":
        return Verdict(kind="damaged", said=f"{piece.why}; all that was executed before it holds", between=between)
    if piece.begins == "otherwise":
        said = f"checkpoint {piece.first} is not what the run went on from: {piece.why}"
        if bad:
            said += "; the steps before it come to the journaled state"
        return Verdict(kind="checkpoint", said=said, between=between)
    if piece.records is None:
        return _of_state(piece, after)
    return _of_step(piece, behind, *piece.records)


def _of_step(piece: Piece, behind: Sequence[Piece], step: int, fields: tuple[str, ...]) -> Verdict:
    """Steps that were recorded otherwise."""
    kind: Kind
    named = f"step {step} was recorded otherwise, in {', '.join(fields)}"
    if piece.ends:
        kind = "record"
        why = f"the state after step {piece.last} is the recorded one, so the record was changed, not the run"
    elif not behind:
        kind, why = "open", f"no piece behind step {piece.last} says whether that happened once or always"
    elif behind[0].holds:
        kind = "once"
        why = (
            f"the steps after checkpoint {piece.last} follow from it: something happened once, at this step or in "
            f"what it began with, and the run went on from what came of it"
        )
    elif all(p.records is not None and p.records[0] == p.first + 1 for p in behind):
        kind = "persistent"
        why = f"so was the first step of every piece behind it, to {behind[-1].last}: code, environment or hardware"
    else:
        kind, why = "several", f"and not alone: steps {behind[0].first + 1} to {behind[-1].last} do not hold either"
    between = (piece.first, piece.last)
    return Verdict(kind=kind, said=f"{named}; {why}", step=step, fields=fields, between=between)


def _of_state(piece: Piece, after: Piece | None) -> Verdict:
    """Steps as recorded that lead to another state than was journaled."""
    kind: Kind
    step, between = piece.last, (piece.first, piece.last)
    if piece.saved:
        kind = "journal"
        said = f"the journal says another state of step {step} than its checkpoint holds, which its steps come to"
    elif after is None:
        kind = "open"
        said = (
            f"the state of step {step} does not follow from its steps, which are as recorded; no piece behind says more"
        )
    elif after.begins == "damaged":
        kind, said = "damaged", f"{after.why}; nor do the steps before it come to what the journal says"
    elif after.begins == "otherwise":
        kind, said = "several", f"checkpoint {step} holds neither what its steps come to nor what the journal says"
    elif after.records is None:
        kind = "before"
        said = (
            f"the state of step {step} does not follow from its steps, which are as recorded, but those behind it "
            f"follow from it: it was changed in memory, after the last loss that would show it"
        )
    else:
        kind = "checkpoint"
        said = (
            f"checkpoint {step} is neither what the steps before it come to nor what those behind it went on from: it "
            f"was changed later, and the journal with it"
        )
    return Verdict(kind=kind, said=said, step=step, fields=("state digest",), between=between)
