"""The record of a run at one moment, which may be writing it: whole lines up to there, byte for byte. No jax.

The record only grows, so that a moment is a number of bytes of each file; taken once, it can be copied whenever.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxllm.convert.vocabulary import KEPT, TEMPLATE, TOKENIZER, kept_files
from jaxllm.core.config import config
from jaxllm.core.errors import CheckFailed, LedgerError, RunError
from jaxllm.data.steps import StepTable
from jaxllm.ledger.fold import present
from jaxllm.ledger.journal import Event, read_journal
from jaxllm.ledger.records import read_steps
from jaxllm.ledger.segments import segment_paths
from jaxllm.release import checks
from jaxllm.workspace import SPECIAL_TOKENS

Report = Callable[[str, int, int], None]
JOURNAL, METRICS = "journal.jsonl", "metrics.jsonl"
_TRIES, _PAUSE = 200, 0.05  # until the journal stands still for a moment; events are far apart
_COPY_TRIES = 3
_BLOCK = 1 << 20


@config
class Moment:
    """How much of each growing file there was: bytes of whole lines. segments: of steps/, in order."""

    journal: int
    events: int
    segments: tuple[int, ...]
    metrics: int


def take(folder: Path) -> Moment:
    """The record of now. The journal did not change while the step records were looked at, so they belong together.

    RunError: the run was never started, or its journal does not stand still.
    """
    if not (folder / JOURNAL).is_file():
        raise RunError(f"{folder} has not been started: there is nothing to release")
    for _ in range(_TRIES):
        journal = _whole(folder / JOURNAL)
        metrics = _whole(folder / METRICS) if (folder / METRICS).is_file() else 0  # first: they tell of recorded steps
        paths = segment_paths(folder / "steps")
        sizes = [p.stat().st_size for p in paths[:-1]] + [_whole(p) for p in paths[-1:]]
        if _whole(folder / JOURNAL) == journal:
            events = len(events_of(folder, journal))
            return Moment(journal=journal, events=events, segments=tuple(sizes), metrics=metrics)
        time.sleep(_PAUSE)
    raise RunError(f"{folder / JOURNAL} is written to all the time; try again when the run has settled")


def events_of(folder: Path, size: int) -> list[Event]:
    """The events in the first `size` bytes of the journal."""
    with (folder / JOURNAL).open("rb") as f:
        count = f.read(size).count(b"\n")
    events = read_journal(folder / JOURNAL)[:count]
    if not events:
        raise RunError(f"{folder} has not been started: there is nothing to release")
    return events


def copy(folder: Path, out: Path, moment: Moment, lineages: int, table: StepTable, report: Report) -> None:
    """Write the record of `moment` to the folder `out`, and hold its losses against its steps.

    lineages: how many there were. LedgerError, CheckFailed: it is not what was written.
    """
    out.mkdir(parents=True)
    for name in _written_once(folder):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    _copy_part(folder / JOURNAL, out / JOURNAL, moment.journal)
    if moment.metrics:
        _copy_part(folder / METRICS, out / METRICS, moment.metrics)
    (out / "steps").mkdir()
    for path, size in zip(segment_paths(folder / "steps"), moment.segments, strict=False):
        _copy_part(path, out / "steps" / path.name, size)
    for attempt in range(1, _COPY_TRIES + 1):
        shutil.rmtree(out / "losses", ignore_errors=True)
        for lineage in range(lineages):
            _copy_losses(folder / "losses" / str(lineage), out / "losses" / str(lineage))
        try:
            found = {(r.lineage, r.step): r for r in read_steps(out / "steps")}
            events = read_journal(out / JOURNAL)
            checks.losses(out, found, table, present(events), events, report)
            return
        except CheckFailed:  # a chunk may have been replaced by the run while it was copied
            if attempt == _COPY_TRIES:
                raise


def record_bytes(folder: Path, moment: Moment) -> int:
    """What the copy will take, about."""
    losses = sum(p.stat().st_size for p in (folder / "losses").rglob("*") if p.is_file())
    return moment.journal + sum(moment.segments) + moment.metrics + losses


def _written_once(folder: Path) -> Iterator[str]:
    """The config, and what belongs to the tokenizer."""
    yield "run.json"
    kept = [f"{KEPT}/{name}" for name in kept_files(folder / KEPT)] if (folder / KEPT).is_dir() else []
    for name in (TOKENIZER, SPECIAL_TOKENS, TEMPLATE, *kept):
        if (folder / name).is_file():
            yield name


def _copy_losses(source: Path, target: Path) -> None:
    """Counts before sums: where a count is there, so is the sum (ledger/losses.py), whenever a writer replaces them."""
    for array in ("tokens", "sum"):
        for path in sorted((source / array).rglob("*")):
            if path.is_file() and not path.name.endswith(".__lock"):
                place = target / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def _copy_part(source: Path, target: Path, size: int) -> None:
    left = size
    with source.open("rb") as f, target.open("wb") as g:
        while left and (block := f.read(min(left, _BLOCK))):
            left -= g.write(block)
    if left:
        raise LedgerError(f"{source} is shorter than it was; restore it from a copy")


def _whole(path: Path) -> int:
    """Bytes up to the last newline."""
    with path.open("rb") as f:
        end = f.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            f.seek(start)
            newline = f.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
