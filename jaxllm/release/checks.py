"""What `verify` looks at in a run folder. No jax.

Each check raises CheckFailed, or what reading raised, and names file, step and field."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.checkpoint.layout import abandoned, list_steps, missing_file, read_meta, step_folder
from jaxllm.checkpoint.manifest import ArrayRecord, Manifest, item_of
from jaxllm.checkpoint.quiet import one_line
from jaxllm.core.errors import CheckFailed
from jaxllm.core.mixing import add_lanes, array_lanes, hex_lanes
from jaxllm.data.batch import host_batch
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.chain import origin
from jaxllm.ledger.fold import Present, present
from jaxllm.ledger.journal import holds, read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.losses import NEVER, LossLog
from jaxllm.ledger.recorder import losses_digest
from jaxllm.ledger.records import StepRecord, read_steps
from jaxllm.ledger.segments import DIGITS, read_segment, segment_paths
from jaxllm.run import RunConfig, identity_hash

Report = Callable[[str, int, int], None]
Event = Mapping[str, Any]
Key = tuple[int, int]  # lineage, step


def extent(folder: Path) -> tuple[Any, ...]:
    """What grows or changes while a run is running."""
    base = folder / "checkpoints"
    files = [folder / "journal.jsonl", *sorted((folder / "steps").glob("*.jsonl"))]
    places = (base, *abandoned(base).values())
    return (*(path.stat().st_size for path in files), *((p.name, s) for p in places for s in list_steps(p)))


def journal(folder: Path, run: RunConfig) -> tuple[list[dict[str, Any]], Present]:
    """The events and what they come to, of a chain that holds and is about this config."""
    events = read_journal(folder / "journal.jsonl")
    now = present(events)
    if now.identity is not None and now.identity != (mine := identity_hash(run)):
        raise CheckFailed(f"run.json: its identity is {mine[:12]}, the journal was written for {now.identity[:12]}")
    if (end := now.finished) is not None:
        saved = next((c.digest for c in now.checkpoints if (c.lineage, c.step) == (end.lineage, end.step)), end.digest)
        if saved != end.digest:
            raise CheckFailed(
                f"journal.jsonl: it finished with state {end.digest[:12]}, its checkpoint {end.step} is {saved[:12]}"
            )
    return events, now


def records(folder: Path) -> tuple[dict[Key, StepRecord], set[str]]:
    """(last record of every step of every lineage, the hashes of all lines), of a chain that holds."""
    heads, prev = {origin(DIGITS)}, origin(DIGITS)
    for path in segment_paths(folder / "steps"):
        if (segment := read_segment(path, prev)) is not None:
            prev = segment.head
            heads |= {fields["hash"] for fields in segment.records}
    return {(r.lineage, r.step): r for r in read_steps(folder / "steps")}, heads


def steps(found: Mapping[Key, StepRecord], lineages: Lineages, table: StepTable, stages: Sequence[str]) -> None:
    """Along every lineage no step is missing, and each consumed the positions that were its own."""
    for branch in lineages.branches:
        expected = branch.step + 1
        for step in sorted(s for lineage, s in found if lineage == branch.lineage):
            if step > branch.step and step != expected:
                raise CheckFailed(f"steps/: step {expected} of lineage {branch.lineage} is missing before step {step}")
            expected = step + 1 if step > branch.step else expected
        for stretch in lineages.path(branch.lineage)[:-1]:
            if stretch.last is not None and (stretch.lineage, stretch.last) not in found:
                raise CheckFailed(f"steps/: step {stretch.last} of lineage {stretch.lineage}, which others go on from")
    for (lineage, step), record in found.items():
        if lineage > lineages.live:
            raise CheckFailed(f"steps/: step {step} is of lineage {lineage}, which the journal does not know")
        span = table.span(step)
        said = (record.cursor, record.sequences, record.stage)
        if said != (due := (span.first, span.size, stages[span.stage])):
            raise CheckFailed(
                f"steps/: step {step} of lineage {lineage}: cursor, sequences, stage are {said}, not {due}"
            )


def complete(found: Mapping[Key, StepRecord], now: Present, events: Sequence[Event]) -> None:
    """The records reach as far as the journal says that the run came."""
    for event in events:
        match event:
            case {"event": "checkpoint" | "finish", "lineage": lineage, "step": step}:
                pass
            case {"event": "rollback", "parent": lineage, "last": step}:
                pass
            case _:
                continue
        owner = now.lineages.owner(step, lineage)
        if step > now.lineages.origin and (owner, step) not in found:
            raise CheckFailed(
                f"steps/: step {step} of lineage {owner} is missing, which the journal knows of (event {event['seq']}, "
                f"{event['event']})"
            )


def refused(found: Mapping[Key, StepRecord], events: Sequence[Event]) -> None:
    """Refused updates are events, and the other way round, but for steps that are known to have come out otherwise."""
    journaled = {(e["lineage"], e["step"]) for e in events if e["event"] == "refused"}
    known = {(e["lineage"], e["step"]) for e in events if e["event"] == "divergence" and "refused" in e["fields"]}
    recorded = {key for key, r in found.items() if r.refused}
    for lineage, step in sorted(recorded - journaled - known):
        raise CheckFailed(f"journal.jsonl: no event says that step {step} of lineage {lineage} was refused")
    for lineage, step in sorted(key for key in journaled - recorded - known if key in found):
        raise CheckFailed(
            f"steps/: step {step} of lineage {lineage}: refused is false, the journal says it was refused"
        )


def losses(
    folder: Path,
    found: Mapping[Key, StepRecord],
    table: StepTable,
    now: Present,
    events: Sequence[Event],
    report: Report,
) -> tuple[int, int]:
    """(sequences that hash to what was recorded, steps since the last checkpoint whose losses are not there yet).

    A process that was killed leaves losses that it held in memory unwritten, and one that came out otherwise than
    recorded has written over those before: both only behind the last checkpoint of a lineage.
    """
    saved: dict[int, int] = {}
    otherwise = {(e["lineage"], e["step"]) for e in events if e["event"] == "divergence"}
    # The guard writes all losses before it goes back.
    whole = {e["parent"] for e in events if e["event"] == "rollback" and e["by"] == "guard"}
    for c in now.checkpoints:
        saved[c.lineage] = max(saved.get(c.lineage, 0), c.step)
    logs = {n: LossLog(folder / "losses", table.positions, n) for n in {lineage for lineage, _ in found}}
    sequences = behind = 0
    for i, ((lineage, step), record) in enumerate(sorted(found.items())):
        report("losses", i + 1, len(found))
        sums, counts = logs[lineage].read(record.cursor, record.cursor + record.sequences)
        digest = losses_digest(sums, counts)
        open_end = step > saved.get(lineage, 0) and lineage not in whole
        if open_end and ((counts == NEVER).any() or (digest != record.losses and (lineage, step) in otherwise)):
            behind += 1
            continue
        if digest != record.losses:
            raise CheckFailed(
                f"losses/{lineage}: those of step {step} hash to {digest}, its record says losses={record.losses}"
            )
        sequences += record.sequences
    return sequences, behind


def checkpoints(
    folder: Path,
    events: list[dict[str, Any]],
    now: Present,
    heads: set[str],
    table: StepTable,
    seq_len: int,
    report: Report,
) -> list[Manifest]:
    """The manifests of all checkpoints on the disk, those of lineages that were left included, whose arrays are what
    was saved and which journal and records know."""
    known = {(e["lineage"], e["step"]): e for e in events if e["event"] == "checkpoint"}
    base = folder / "checkpoints"
    places = [(base, s) for s in list_steps(base)]
    places += [(place, s) for place in abandoned(base).values() for s in list_steps(place)]
    found = []
    for i, (place, step) in enumerate(places):
        report("checkpoints", i + 1, len(places))
        manifest, cursor = read_meta(place, step)
        where = f"{place.relative_to(folder)}/{step_folder(place, step).name}"
        event = known.get((manifest.lineage, step))
        if event is not None and event["digest"] != manifest.state_digest:
            raise CheckFailed(f"{where}: its state is {manifest.state_digest[:12]}, journaled {event['digest'][:12]}")
        if event is None and not _fresh(manifest, now):
            raise CheckFailed(f"{where}: the journal knows no checkpoint {step} of lineage {manifest.lineage}")
        if manifest.journal_head is None or not holds(events, manifest.journal_head):
            raise CheckFailed(f"{where}: the journal lacks the event that it was saved after; its end is missing")
        if manifest.steps_head is not None and manifest.steps_head not in heads:
            raise CheckFailed(f"{where}: steps/ lacks the record that it was saved after; its end is missing")
        due = (table.consumed(step), table.consumed(step) * seq_len)
        if (cursor.get("position"), manifest.tokens) != due:
            raise CheckFailed(
                f"{where}: position and tokens are {cursor.get('position')}, {manifest.tokens}, not {due}"
            )
        arrays(place, step, manifest, where)
        found.append(manifest)
    end = now.finished
    if end is not None and (end.lineage, end.step) not in {(m.lineage, m.step) for m in found}:
        raise CheckFailed(f"checkpoints/: the last one, of step {end.step}, is missing")
    return found


def arrays(place: Path, step: int, manifest: Manifest, where: str) -> None:
    """Every array of a checkpoint is, to the bit, what was saved."""
    if missing := missing_file(place, step, sorted(manifest.items)):
        raise CheckFailed(f"{where}: {missing}")
    for record in manifest.arrays:
        if (digest := _digest(place, step, record, where)) != record.digest:
            raise CheckFailed(f"{where}: {record.name}: its digest is {digest}, saved was {record.digest}")


def distinct(found: Sequence[Manifest], records: Mapping[Key, StepRecord], lineages: Lineages) -> None:
    """No two steps of one lineage have the same parameters, unless no update between them could move them."""
    for branch in lineages.branches:
        seen: dict[tuple[str, ...], int] = {}
        mine = (m for m in found if m.lineage == lineages.owner(m.step, branch.lineage))
        for manifest in sorted(mine, key=lambda m: m.step):
            params = tuple(a.digest for a in manifest.arrays if item_of(a.name) == "params")
            before = seen.setdefault(params, manifest.step)
            between = range(before + 1, manifest.step + 1)
            moved = [s for s in between if not _idle(records, lineages, branch.lineage, s)]
            if moved:
                raise CheckFailed(f"checkpoints {before} and {manifest.step} have the same parameters")


def batches(store: Store, run: RunConfig, chosen: Iterable[StepRecord], lineages: Lineages, report: Report) -> None:
    """The batch of each record, computed anew from store, order and events."""
    wanted = list(chosen)
    streams = {n: stream_of_run(run.data, run.seed, store, lineages.edits(n)) for n in {r.lineage for r in wanted}}
    for i, record in enumerate(wanted):
        report("batches", i + 1, len(wanted))
        stream, table = streams[record.lineage]
        again = hex_lanes(host_batch(store, stream, table, run.data, record.step).lanes)
        if again != record.batch:
            raise CheckFailed(
                f"steps/: step {record.step} of lineage {record.lineage}: its data hashes to {again}, recorded is "
                f"batch={record.batch}"
            )


def _fresh(manifest: Manifest, now: Present) -> bool:
    """Whether a checkpoint may be so new that its process was killed, or is about, to journal it."""
    last = now.last_checkpoint
    return manifest.lineage == now.lineage and (last is None or manifest.step > last.step)


def _idle(records: Mapping[Key, StepRecord], lineages: Lineages, lineage: int, step: int) -> bool:
    """Whether an update moved nothing: refused, or at a learning rate of zero."""
    record = records.get((lineages.owner(step, lineage), step))
    return record is not None and (record.refused or record.lr == 0)


def _digest(place: Path, step: int, record: ArrayRecord, where: str) -> str:
    """The digest of an array as it lies on the disk; what a leading index takes is held in memory at a time."""
    import tensorstore as ts

    item, _, key = record.name.partition(".")
    base = f"file://{step_folder(place.absolute(), step) / item}/"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{key}/"}}
    try:
        array = ts.open(spec, open=True, read=True).result()
        if tuple(array.shape) != record.shape or array.dtype.name != record.dtype:
            raise CheckFailed(f"{where}: {record.name}: the files hold {array.dtype.name}{list(array.shape)}")
        lanes, size = (0, 0), math.prod(record.shape[1:])
        for part, first in _parts(array, record.shape):
            lanes = add_lanes(lanes, array_lanes(np.asarray(part.read().result()), first * size))
    except (ValueError, OSError, RuntimeError) as err:
        raise CheckFailed(f"{where}: {record.name}: cannot be read: {one_line(err)}") from None
    return hex_lanes(lanes)


def _parts(array: Any, shape: Sequence[int]) -> Iterator[tuple[Any, int]]:
    """(part, its first leading index), in pieces that chunks are not cut by."""
    if not shape:
        yield array, 0
        return
    rows = max(1, array.chunk_layout.read_chunk.shape[0])
    for first in range(0, shape[0], rows):
        yield array[first : min(first + rows, shape[0])], first
