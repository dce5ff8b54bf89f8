"""`jaxllm replay --bisect`: a divergence narrowed down to a step, and to what was changed, by the checkpoints between.

The interval is cut at its checkpoints, and every piece executed from its own. In order, and not by halves: a piece that
holds says nothing of those before it, since it does not begin with what they lead to, and what happened once shows in
one piece alone. No step is executed twice, so it costs what a plain replay does, and less where something is found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.core.errors import CheckFailed, CheckpointError
from jaxllm.release.agreement import Agreement, Class, satisfies
from jaxllm.release.interval import Interval, Report, pieces
from jaxllm.release.replay import open_compared
from jaxllm.release.verdict import Piece, Verdict, enough, judge
from jaxllm.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Bisected:
    """What came of it. pieces: those that were looked at, in order. changes: as those of `Replayed`."""

    first: int
    last: int
    asked: Class
    pieces: tuple[Piece, ...]
    verdict: Verdict
    changes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether all of the interval is what was recorded, to within the class asked for."""
        return self.verdict.kind == "holds"


def bisect_interval(
    run: RunConfig,
    folder: Path,
    start: int,
    stop: int,
    *,
    lineage: int | None = None,
    asked: Class | None = None,
    said: Callable[[str], None] = lambda line: None,
    report: Report = lambda phase, done, total: None,
) -> Bisected:
    """Execute steps start+1..stop again, piece by piece, until it is clear what the first divergence is. Arguments and
    RunError as `replay_interval`."""
    interval, asked, changes = open_compared(run, folder, start, stop, lineage=lineage, asked=asked, said=said)
    found: list[Piece] = []
    for first, last in pieces(interval):
        found.append(_piece(interval, first, last, asked, report))
        if enough(found):
            break
    return Bisected(first=start + 1, last=stop, asked=asked, pieces=tuple(found), verdict=judge(found), changes=changes)


def _piece(interval: Interval, first: int, last: int, asked: Class, report: Report) -> Piece:
    compute = interval.run.precision.compute
    try:
        state = interval.state_at(first, journaled=False)
    except CheckFailed as err:
        return Piece(first=first, last=last, begins="damaged", why=str(err))
    otherwise = interval.otherwise(first)
    by_record, by_state = Agreement(compute), Agreement(compute)
    state, _ = interval.execute(state, first, last, by_record, by_state, report)
    records = None
    if not satisfies(by_record.found, asked):
        # Where rounding was asked for, what broke it; else the first bit that differs.
        at = by_record.broken if asked == "rounding" and by_record.broken else by_record.first
        assert at is not None
        records = (at[0], (at[1],) if isinstance(at[1], str) else tuple(at[1]))
    known = last in interval.saved
    return Piece(
        first=first,
        last=last,
        begins="as journaled" if otherwise is None else "otherwise",
        why=otherwise,
        records=records,
        ends=satisfies(by_state.found, asked) if known else None,
        saved=_saved(interval, last) == interval.digest(state) if known else None,
    )


def _saved(interval: Interval, step: int) -> str | None:
    """The state that a checkpoint says it holds; None if there is none that says so."""
    place = interval.kept(step)
    try:
        return None if place is None else CheckpointReader(place).manifest(step).state_digest
    except CheckpointError:
        return None
