"""Lineages: which line of history a step belongs to, as a fold over the journal.

A run begins as lineage 0. Going back to an earlier step opens the next lineage, which shares everything up to that step
with the one it left; so a step number alone says nothing, and every record, loss and checkpoint is keyed by (lineage,
step). Edits of the stream hold in the lineage in which they were made and in all that come after it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxllm.core.errors import LedgerError
from jaxllm.data.edits import Edit, decode_edits

Event = Mapping[str, Any]

_DECIDING = ("fork", "rollback", "skip", "defer")


def deciding(events: Iterable[Event]) -> list[Event]:
    """The events that lineages are made of."""
    return [e for e in events if e["event"] in _DECIDING]


class Stretch(NamedTuple):
    """Steps first..last that were recorded in one lineage; last is None where it is still growing."""

    lineage: int
    first: int
    last: int | None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A lineage. step: the last one that it shares with its parent (of lineage 0: 0, or the step of a fork).

    edits: those made in it, at its birth or later.
    """

    lineage: int
    parent: int | None
    step: int
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Lineages:
    """All lineages of a run, by number. Where a lineage is asked for, None is the live one."""

    branches: tuple[Branch, ...] = (Branch(lineage=0, parent=None, step=0),)

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Lineages":
        """Fold events, in order. LedgerError names one that does not fit those before it."""
        found = cls()
        for event in events:
            found = found.after(event)
        return found

    def after(self, event: Event) -> "Lineages":
        """With one event more."""
        where = f"journal.jsonl event {event.get('seq')} ({event['event']})"
        match event:
            case {"event": "fork", "step": step, "edits": edits}:
                return Lineages((Branch(lineage=0, parent=None, step=step, edits=decode_edits(edits, where)),))
            case {"event": "rollback", "lineage": new, "parent": parent, "step": step, "edits": edits}:
                if new != len(self.branches) or parent != self.live:
                    raise LedgerError(f"{where}: lineage {new} from {parent} does not follow lineage {self.live}")
                born = Branch(lineage=new, parent=parent, step=step, edits=decode_edits(edits, where))
                return Lineages((*self.branches, born))
            case {"event": "skip" | "defer", "lineage": lineage, "edits": edits}:
                if lineage != self.live:
                    raise LedgerError(f"{where}: it edits lineage {lineage}, but {self.live} is the live one")
                last = self.branches[-1]
                edited = replace(last, edits=(*last.edits, *decode_edits(edits, where)))
                return Lineages((*self.branches[:-1], edited))
            case _:
                return self

    @property
    def live(self) -> int:
        """The lineage that the run goes on with."""
        return len(self.branches) - 1

    @property
    def origin(self) -> int:
        """The step that the run began after: 0, or where it was forked from another one."""
        return self.branches[0].step

    def path(self, lineage: int | None = None) -> tuple[Stretch, ...]:
        """What a lineage consists of, oldest first. LedgerError if there is none of that number.

        Stretches without a step are left out, but for the lineage's own.
        """
        number = self.live if lineage is None else lineage
        if not 0 <= number < len(self.branches):
            raise LedgerError(f"there is no lineage {number}; the run has {', '.join(map(str, range(self.live + 1)))}")
        branch: Branch = self.branches[number]
        found = [Stretch(number, branch.step + 1, None)]
        while branch.parent is not None:
            last = min(branch.step, found[0].first - 1)
            branch = self.branches[branch.parent]
            if last > branch.step:
                found.insert(0, Stretch(branch.lineage, branch.step + 1, last))
        return tuple(found)

    def owner(self, step: int, lineage: int | None = None) -> int:
        """The lineage in which a step of `lineage` was recorded."""
        path = self.path(lineage)
        return next((s.lineage for s in reversed(path) if step >= s.first), path[0].lineage)

    def edits(self, lineage: int | None = None) -> tuple[Edit, ...]:
        """All edits in force in a lineage, in the order in which they were made."""
        number = self.path(lineage)[-1].lineage
        return tuple(edit for branch in self.branches[: number + 1] for edit in branch.edits)
