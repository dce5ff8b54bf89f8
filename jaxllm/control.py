"""What a person does to the course of a run: skip data that is to come, go back. No jax: nothing is computed.

`planned` decides, from what the run has done, and is the same whether the run is running or not. `settle` writes the
event, for whoever holds the run's lease: the command itself, or the trainer between two steps (attending.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from jaxllm.checkpoint import layout
from jaxllm.checkpoint.manifest import Manifest
from jaxllm.core.errors import RunError
from jaxllm.data.edits import Edit, edits_of_steps, encode_edits
from jaxllm.data.steps import StepTable
from jaxllm.ledger.commits import make_good
from jaxllm.ledger.history import history
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.requests import Request, Rollback, Skip
from jaxllm.run import RunConfig

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands. done: the last step recorded along the live lineage; saved: the steps of its checkpoints."""

    run: RunConfig
    folder: Path
    lineages: Lineages
    done: int
    saved: frozenset[int]


def planned(asked: Skip | Rollback, place: Place) -> tuple[str, Event]:
    """The event that carries out what is asked, and its fields. RunError: it cannot be done, and why."""
    match asked:
        case Skip(steps=steps, defer=defer):
            return "defer" if defer else "skip", _skip(asked, place, steps, defer)
        case Rollback():
            return "rollback", _rollback(asked, place)
        case _:
            assert_never(asked)


def settle(
    asked: Skip | Rollback,
    run: RunConfig,
    folder: Path,
    journal: Journal,
    *,
    done: Callable[[Lineages], int] | None = None,
    request: Request | None = None,
) -> Event:
    """Journal what is asked, for the holder of the run's lease; what the run does from then on follows from the event.

    done: the last step recorded along the live lineage, None reads it from the records. request: whose answer this is.
    RunError: it cannot be done, and nothing was changed.
    """
    lineages = Lineages.of(journal.events)
    last = recorded(folder, lineages) if done is None else done(lineages)
    saved = [m for m in _manifests(folder) if m.lineage == lineages.owner(m.step)]
    place = Place(run=run, folder=folder, lineages=lineages, done=last, saved=frozenset(m.step for m in saved))
    name, fields = planned(asked, place)
    if name == "rollback":
        for manifest in saved:
            make_good(journal, manifest)
    told = {} if request is None else {"request": request.id, "asked": request.by}
    event = journal.append(name, **fields, **told)
    if name == "rollback":
        # The next start would do so too; but until then nobody should take them for the run's.
        layout.abandon(folder / "checkpoints", lineages.after(event).owner, run.guard.keep_abandoned)
    return event


def recorded(folder: Path, lineages: Lineages) -> int:
    """The last step that was recorded along the live lineage."""
    return max((r.step for r in history(folder, None, lineages)), default=lineages.origin)


def _skip(asked: Skip, place: Place, steps: tuple[int, int], defer: bool) -> Event:
    if steps[0] <= place.done:
        raise RunError(
            f"--steps {steps[0]}:{steps[1]}: {place.folder} has executed {place.done} steps already; to have it forget "
            f"what it saw: jaxllm rollback {place.folder} --to N --{'defer' if defer else 'skip'} "
            f"--steps {steps[0]}:{steps[1]}"
        )
    edits = edits_of_steps(StepTable(place.run.data.stages), "defer" if defer else "skip", *steps)
    return {
        "lineage": place.lineages.live,
        "step": steps[0],
        "edits": encode_edits(edits),
        "why": asked.why,
        "by": "person",
    }


def _rollback(asked: Rollback, place: Place) -> Event:
    to, folder, done, live = asked.to, place.folder, place.done, place.lineages.live
    there = place.saved | ({0} if place.lineages.origin == 0 else set())
    if to not in there:
        names = ", ".join(map(str, sorted(there)))
        raise RunError(f"--to {to}: {folder} has no checkpoint {to} in its live lineage; it has {names}")
    if to >= done:
        raise RunError(f"--to {to}: {folder} has executed {done} steps; name an earlier one")
    edits: tuple[Edit, ...] = ()
    if asked.data is not None:
        first, last = asked.steps or (to + 1, done)
        if not to < first <= last <= done:
            raise RunError(f"--steps {first}:{last} do not lie in {to + 1}..{done}, what the run has done since")
        edits = edits_of_steps(StepTable(place.run.data.stages), asked.data, first, last)
    return {
        "lineage": live + 1,
        "parent": live,
        "step": to,
        "last": done,
        "edits": encode_edits(edits),
        "why": asked.why,
        "by": "person",
    }


def _manifests(folder: Path) -> list[Manifest]:
    found = []
    for step in layout.list_steps(folder / "checkpoints"):
        try:
            found.append(layout.read_meta(folder / "checkpoints", step)[0])
        except layout.DamagedCheckpointError:
            continue  # not one to go back to; whoever restores finds and reports it
    return found
