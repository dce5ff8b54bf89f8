"""What a release says of itself, held against its record: lineages, spans, counts, licence. No jax."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.core.errors import CheckFailed
from jaxllm.data.edits import encode_edits
from jaxllm.data.steps import StepTable
from jaxllm.ledger.chain import origin
from jaxllm.ledger.fold import Present
from jaxllm.ledger.records import StepRecord
from jaxllm.ledger.segments import DIGITS, newest_first, segment_paths
from jaxllm.release.layout import (
    CROISSANT,
    DATA_CARD,
    EVALUATION,
    HF,
    INTERVALS,
    LICENCE,
    MOF,
    ORDER,
    README,
    RECORD,
    RELEASE,
    STEPS_CSV,
    STORE_MANIFEST,
    Release,
)
from jaxllm.run import RunConfig, identity_hash

Event = Mapping[str, Any]
_ALWAYS = (README, DATA_CARD, LICENCE, CROISSANT, MOF, STEPS_CSV, ORDER, INTERVALS, STORE_MANIFEST)


def chains(folder: Path, release: Release, run: RunConfig, events: Sequence[Event]) -> str:
    """Journal and step records end where release.json says, and are those of its run."""
    paths = segment_paths(folder / RECORD / "steps")
    newest = next(newest_first(paths), None)
    said = release.chains
    _same("run.identity", release.run.identity, identity_hash(run))
    _same("chains.journal_events", said.journal_events, len(events))
    _same("chains.journal_head", said.journal_head, events[-1]["hash"])
    _same("chains.steps.segments", said.steps.segments, len(paths))
    _same("chains.steps.head", said.steps.head, origin(DIGITS) if newest is None else newest.head)
    return f"journal and step records end where {RELEASE} says"


def complete(
    folder: Path, release: Release, run: RunConfig, now: Present, records: Mapping[tuple[int, int], StepRecord]
) -> str:
    """Nothing is missing that a release holds; spans tile the stream; counts are those of the record."""
    table = StepTable(run.data.stages)
    there = {f.path for f in release.files}
    due = [*_ALWAYS, *(f"{c.folder}/{EVALUATION}" for c in release.checkpoints)]
    due += [f"{c.folder}/{HF}/config.json" for c in release.checkpoints]
    for path in due:
        if path not in there:
            raise CheckFailed(f"{path}: a release holds it, this one does not list it")
    if not release.licence.strip() or not (folder / LICENCE).read_text(encoding="utf-8").strip():
        raise CheckFailed(f"{LICENCE}: no licence of the weights is stated")
    lineages = now.lineages
    told = [(x.lineage, x.parent, x.step, [(e.kind, e.first, e.count) for e in x.edits]) for x in release.lineages]
    known = [
        (b.lineage, b.parent, b.step, [(e["kind"], e["first"], e["count"]) for e in encode_edits(b.edits)])
        for b in lineages.branches
    ]
    _same("lineages", told, known)
    newest = max((s for n, s in records if n == lineages.live), default=lineages.branches[-1].step)
    _same("run.steps", release.run.steps, newest)
    _same("run.tokens", release.run.tokens, table.consumed(newest) * run.data.seq_len)
    _same("run.finished", release.run.finished, now.finished is not None)
    chosen = {c.branch: c for c in release.checkpoints}
    for c in release.checkpoints:
        earlier = [p for p in release.checkpoints if p.step < c.step and lineages.owner(p.step, c.lineage) == p.lineage]
        before = max(earlier, key=lambda p: p.step, default=None)
        _same(f"{c.branch}: parent", c.parent, None if before is None else before.branch)
        start = lineages.origin if c.parent is None else chosen[c.parent].step
        _same(f"{c.branch}: first", c.first, table.consumed(start))
        _same(f"{c.branch}: last", c.last, table.consumed(c.step))
        _same(f"{c.branch}: tokens", c.tokens, table.consumed(c.step) * run.data.seq_len)
    return f"{len(release.checkpoints)} checkpoints whose data has no gap and no overlap; licence {release.licence}"


def _same(field: str, said: object, found: object) -> None:
    if said != found:
        raise CheckFailed(f"{RELEASE}: {field} is {said}, the record comes to {found}")
