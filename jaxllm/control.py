"""What a person does to the course of a run: skip data that is to come, go back. No jax: nothing is computed.

Each is an event in the journal, and the next `train` goes on as it says. It needs the run's lease: a run that is
running is stopped first (SIGTERM saves it).
"""

from pathlib import Path
from typing import Any

from jaxllm.checkpoint import layout
from jaxllm.checkpoint.manifest import Manifest
from jaxllm.core.errors import RunError
from jaxllm.data.edits import Kind, edits_of_steps, encode_edits
from jaxllm.data.steps import StepTable
from jaxllm.ledger.commits import make_good
from jaxllm.ledger.history import history
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lease import Lease
from jaxllm.ledger.lineage import Lineages
from jaxllm.run import RunConfig
from jaxllm.workspace import open_run, refuse_imported

Event = dict[str, Any]


def skip_steps(folder: Path, steps: tuple[int, int], *, defer: bool, why: str = "asked for") -> Event:
    """Take the data of steps that are still to come out of the stream, or move it to the end of its stage.

    RunError: some of them are done, or they are not steps of the run, or somebody else holds the run.
    """
    run = _started(folder)
    with Lease.acquire(folder), Journal(folder / "journal.jsonl") as journal:
        lineages = Lineages.of(journal.events)
        done = _done(folder, lineages)
        if steps[0] <= done:
            raise RunError(
                f"--steps {steps[0]}:{steps[1]}: {folder} has executed {done} steps already; to have it forget what it "
                f"saw: jaxllm rollback {folder} --to N --{'defer' if defer else 'skip'} --steps {steps[0]}:{steps[1]}"
            )
        kind: Kind = "defer" if defer else "skip"
        edits = edits_of_steps(StepTable(run.data.stages), kind, *steps)
        return journal.append(
            kind, lineage=lineages.live, step=steps[0], edits=encode_edits(edits), why=why, by="person"
        )


def roll_back(
    folder: Path, to: int, *, kind: Kind | None, steps: tuple[int, int] | None = None, why: str = "asked for"
) -> Event:
    """Go back to checkpoint `to` (0: the first parameters) as a new lineage.

    kind: what becomes of the data seen since, or of that of `steps` among it; None takes it again.
    RunError: there is no such checkpoint in the live lineage, nothing lies behind it, or somebody else holds the run.
    """
    run = _started(folder)
    with Lease.acquire(folder), Journal(folder / "journal.jsonl") as journal:
        lineages = Lineages.of(journal.events)
        done = _done(folder, lineages)
        saved = [m for m in _manifests(folder) if m.lineage == lineages.owner(m.step)]
        there = {m.step for m in saved}
        there |= {0} if lineages.origin == 0 else set()
        if to not in there:
            names = ", ".join(map(str, sorted(there)))
            raise RunError(f"--to {to}: {folder} has no checkpoint {to} in its live lineage; it has {names}")
        if to >= done:
            raise RunError(f"--to {to}: {folder} has executed {done} steps; name an earlier one")
        edits: tuple[Any, ...] = ()
        if kind is not None:
            first, last = steps or (to + 1, done)
            if not to < first <= last <= done:
                raise RunError(f"--steps {first}:{last} do not lie in {to + 1}..{done}, what the run has done since")
            edits = edits_of_steps(StepTable(run.data.stages), kind, first, last)
        for manifest in saved:
            make_good(journal, manifest)
        event = journal.append(
            "rollback",
            lineage=lineages.live + 1,
            parent=lineages.live,
            step=to,
            last=done,
            edits=encode_edits(edits),
            why=why,
            by="person",
        )
        # The next start would do so too; but until then nobody should take them for the run's.
        layout.abandon(folder / "checkpoints", lineages.after(event).owner, run.guard.keep_abandoned)
        return event


def _started(folder: Path) -> RunConfig:
    run = open_run(folder)
    refuse_imported(run, folder)
    if not (folder / "journal.jsonl").is_file():
        raise RunError(f"{folder} has not been started: it has no journal; start it with jaxllm train {folder}")
    return run


def _done(folder: Path, lineages: Lineages) -> int:
    """The last step that was recorded along the live lineage."""
    return max((r.step for r in history(folder, None, lineages)), default=lineages.origin)


def _manifests(folder: Path) -> list[Manifest]:
    found = []
    for step in layout.list_steps(folder / "checkpoints"):
        try:
            found.append(layout.read_meta(folder / "checkpoints", step)[0])
        except layout.DamagedCheckpointError:
            continue  # not one to go back to; whoever restores finds and reports it
    return found
