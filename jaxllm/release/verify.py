"""`jaxllm verify`: a run folder, or a release of one, held against itself. No jax, no accelerator, nothing written.

What it proves is that the record is whole, consistent, and about this data and these checkpoints. That the numbers came
out of training on it is proved by executing intervals again (`jaxllm replay`), not by this.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from jaxllm.checkpoint.layout import place_of
from jaxllm.core.errors import CheckFailed, JaxllmError, RunError
from jaxllm.data.config import StoreAt
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.ledger.fold import Committed, Present
from jaxllm.ledger.records import StepRecord
from jaxllm.release import checks, weights, whole
from jaxllm.release.as_run import as_run
from jaxllm.release.layout import RECORD, read_release
from jaxllm.release.sealed import RELEASE, check_files, read_sealed
from jaxllm.run import RunConfig
from jaxllm.workspace import open_run, open_store

T = TypeVar("T")
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check came to. holds: None where it could not be made, and `said` says why."""

    name: str
    holds: bool | None
    said: str
    seconds: float

    @property
    def line(self) -> str:
        """For people."""
        word = {True: "ok", False: "FAILED", None: "not checked"}[self.holds]
        return f"{word:<12}{self.name:<12}{self.said}  ({self.seconds:.1f} s)"


_TRIES = 2  # more, and a run that is running would have to save in every one of them


class Unchecked(Exception):
    """A check cannot be made here; says why."""


@dataclass
class Known:
    """What the checks before have found to hold: a check that needs something which does not is not made.

    settled: nobody writes there any more, as in a release.
    """

    folder: Path
    run: RunConfig
    samples: int
    replays: int
    dice: random.Random
    report: Report
    settled: bool = False
    events: list[dict[str, Any]] | None = None
    now: Present | None = None
    records: dict[tuple[int, int], StepRecord] | None = None
    heads: set[str] | None = None
    extent: tuple[Any, ...] = ()
    draws: dict[str, list[Any]] = field(default_factory=dict)

    def holds(self, check: "Callable[[Known], str]") -> str:
        """What a check says. One that fails while the run goes on is made again, with journal and records read anew:
        a checkpoint may be newer than what was read of them, or have made room for another."""
        if self.settled:
            return check(self)
        for _ in range(_TRIES):
            try:
                return check(self)
            except (JaxllmError, OSError):
                if checks.extent(self.folder) == self.extent:
                    raise
                for again in (_journal, _records):
                    again(self)
        return check(self)

    def drawn(self, what: str, among: Sequence[Any], most: int) -> list[Any]:
        """At most so many of these, drawn at random once: a second look is at the same."""
        if what not in self.draws:
            self.draws[what] = self.dice.sample(among, min(most, len(among)))
        return self.draws[what]

    @property
    def table(self) -> StepTable:
        """Steps and positions of the run."""
        return StepTable(self.run.data.stages)


def verify_run(
    folder: Path, *, samples: int, seed: int, replays: int = 0, report: Report = lambda *_: None
) -> Iterator[Finding]:
    """The findings, one after the other as they are made. RunError if it is no run that was started.

    samples: steps whose batches are computed anew; replays: intervals that are executed again, which starts jax.
    """
    run = open_run(folder)
    if not (folder / "journal.jsonl").is_file():
        raise RunError(f"{folder} has not been started: there is nothing to verify")
    known = Known(folder, run, samples, replays, random.Random(seed), report)
    yield from _made(CHECKS | ({"replay": _replay} if replays else {}), known)


def verify_release(
    folder: Path, *, samples: int, seed: int, replays: int = 0, report: Report = lambda *_: None
) -> Iterator[Finding]:
    """The findings about a release: its files against release.json, then the record in it against itself, then what
    release.json, states and weights say against the record. RunError if it is no release. Arguments as `verify_run`;
    intervals are executed between the training states that it holds."""
    if not (folder / RELEASE).is_file():
        raise RunError(f"{folder} is no release: it has no {RELEASE}")
    record = folder / RECORD

    def files() -> str:
        count, size = check_files(folder, read_sealed(folder), report)
        return f"{count:,} files of {size:,} bytes are what {RELEASE} lists, and there is nothing else"

    def ends(known: Known) -> str:
        return whole.chains(folder, read_release(folder), known.run, _needs(known.events, "the journal"))

    def complete(known: Known) -> str:
        now, records = _needs(known.now, "the journal"), _needs(known.records, "the step records")
        return whole.complete(folder, read_release(folder), known.run, now, records)

    def states(known: Known) -> str:
        release, events = read_release(folder), _needs(known.events, "the journal")
        count = weights.states(folder, release, events, known.report)
        return f"{len(release.checkpoints)} are journaled with their state; {count} states digested anew"

    def parameters(known: Known) -> str:
        exact, rounded = weights.weights(folder, read_release(folder), known.report)
        late = f"; {rounded} were rounded, which no digest can be held against" if rounded else ""
        return f"weights of {exact} checkpoints digest to the parameters that were saved{late}"

    def replay(known: Known) -> str:
        store = _store(known)
        with as_run(folder, read_release(folder)) as run:
            # The place of the store may be relative to where the release lies.
            data = dataclasses.replace(known.run.data, store=StoreAt(path=str(Path(store.path).absolute())))
            return _replay(dataclasses.replace(known, folder=run, run=dataclasses.replace(known.run, data=data)))

    yield _finding("files", files)  # first: it names a file that is damaged, whatever else that brings about
    try:
        run = open_run(record)
    except (JaxllmError, OSError) as err:
        yield Finding(name="config", holds=False, said=str(err), seconds=0.0)
        return
    known = Known(record, run, samples, replays, random.Random(seed), report, settled=True)
    apart = {name: check for name, check in CHECKS.items() if name != "checkpoints"}
    told = {"ends": ends, "complete": complete, "states": states, "weights": parameters}
    if replays:
        told["replay"] = replay
    yield from _made(apart | told, known)


def _made(table: Mapping[str, Callable[[Known], str]], known: Known) -> Iterator[Finding]:
    for name, check in table.items():
        yield _finding(name, partial(known.holds, check))


def _finding(name: str, make: Callable[[], str]) -> Finding:
    began = time.perf_counter()
    try:
        holds, said = True, make()
    except Unchecked as err:
        holds, said = None, str(err)
    except (JaxllmError, OSError) as err:
        holds, said = False, str(err)
    return Finding(name=name, holds=holds, said=said, seconds=time.perf_counter() - began)


def _journal(known: Known) -> str:
    known.extent = checks.extent(known.folder)
    known.events, known.now = checks.journal(known.folder, known.run)
    return f"{len(known.events):,} events, each hashing the one before; {known.now.lineage + 1} lineages"


def _records(known: Known) -> str:
    records, heads = checks.records(known.folder)
    now, events = _needs(known.now, "the journal"), _needs(known.events, "the journal")
    checks.steps(records, now.lineages, known.table, [s.name for s in known.run.data.stages])
    checks.complete(records, now, events)
    checks.refused(records, events)
    known.records, known.heads = records, heads
    return f"{len(records):,} step records, each hashing the one before; no gap, every cursor where it has to be"


def _losses(known: Known) -> str:
    records, now = _needs(known.records, "the step records"), _needs(known.now, "the journal")
    events = _needs(known.events, "the journal")
    done, behind = checks.losses(known.folder, records, known.table, now, events, known.report)
    late = f"; {behind} steps since the last checkpoint not on the disk yet" if behind else ""
    return f"losses of {done:,} sequences hash to what their steps recorded{late}"


def _checkpoints(known: Known) -> str:
    events, now = _needs(known.events, "the journal"), _needs(known.now, "the journal")
    records, heads = _needs(known.records, "the step records"), _needs(known.heads, "the step records")
    found = checks.checkpoints(known.folder, events, now, heads, known.table, known.run.data.seq_len, known.report)
    checks.distinct(found, records, now.lineages)
    arrays = sum(len(m.arrays) for m in found)
    return f"{len(found)} checkpoints, {arrays} arrays digested anew, no two alike"


def _batches(known: Known) -> str:
    records, now = _needs(known.records, "the step records"), _needs(known.now, "the journal")
    store = _store(known)
    chosen = known.drawn("steps", sorted(records), known.samples)
    checks.batches(store, known.run, [records[key] for key in sorted(chosen)], now.lineages, known.report)
    return f"{len(chosen)} steps drawn at random: order and tokens computed anew hash to what was recorded"


def _replay(known: Known) -> str:
    now = _needs(known.now, "the journal")
    there = [c.step for c in now.checkpoints_of() if _lies(known.folder, c)]
    starts = [0, *there] if now.lineages.origin == 0 else there
    intervals = list(pairwise(starts))
    if not intervals:
        raise Unchecked("no two checkpoints of the live lineage, with their whole state, to replay between")
    from jaxllm.release.outcome import lines
    from jaxllm.release.replay import replay_interval

    _store(known)
    chosen = sorted(known.drawn("intervals", intervals, known.replays))
    found = []
    for start, stop in chosen:
        replayed = replay_interval(known.run, known.folder, start, stop, report=known.report)
        if not replayed.holds:
            raise CheckFailed("; ".join(line.strip() for line in lines(replayed)))
        found.append(f"{start} to {stop} {replayed.agreement.found}")
    return f"executed again: {', '.join(found)}"


def _store(known: Known) -> Store:
    try:
        return open_store(known.run, known.folder)[1]
    except RunError as err:
        raise Unchecked(str(err)) from None


def _lies(folder: Path, checkpoint: Committed) -> bool:
    """Whether retention has left it."""
    return place_of(folder / "checkpoints", checkpoint.step, checkpoint.lineage) is not None


# In this order: each goes by what those before have found to hold.
CHECKS: dict[str, Callable[[Known], str]] = {
    "journal": _journal,
    "records": _records,
    "losses": _losses,
    "checkpoints": _checkpoints,
    "batches": _batches,
}


def _needs(value: T | None, what: str) -> T:
    if value is None:
        raise Unchecked(f"{what} does not hold")
    return value
