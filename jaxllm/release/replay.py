"""`jaxllm replay`: an interval of a run executed again, held step by step against what was recorded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.checkpoint import fingerprint
from jaxllm.checkpoint.revision import source_revision
from jaxllm.core.config import essential
from jaxllm.ledger.lineage import Lineages, Stretch
from jaxllm.parallel.mesh import sizes
from jaxllm.release.agreement import Agreement, Class, satisfies
from jaxllm.release.interval import Event, Interval, Report
from jaxllm.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What came of a replay of steps first..last.

    changes: how this environment differs from the recorded ones. states: how many state digests were compared. reason:
    what explains the first difference, as far as it can be told; None where there is none.
    """

    first: int
    last: int
    asked: Class
    agreement: Agreement
    changes: tuple[str, ...]
    states: int
    reason: str | None

    @property
    def holds(self) -> bool:
        """Whether it is the class that was asked for, or better."""
        return satisfies(self.agreement.found, self.asked)


def open_compared(
    run: RunConfig,
    folder: Path,
    start: int,
    stop: int,
    *,
    lineage: int | None = None,
    asked: Class | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> tuple[Interval, Class, tuple[str, ...]]:
    """(the interval, the class that is asked for, how this environment differs from the recorded ones).

    asked: None takes bitwise where this environment is the recorded one, else rounding. said: gets what a person should
    know before time is spent.
    """
    interval = Interval.open(run, folder, start, stop, lineage)
    here = fingerprint.collect(sizes(interval.parts.mesh), essential(interval.run.compute))
    changes = _changes(interval.events, interval.lineages.path(lineage), start, stop, here)
    asked = asked or ("rounding" if changes else "bitwise")
    said(f"replay of steps {start + 1} to {stop} of {folder}, asked for: {asked}")
    for line in changes:
        said(f"  differs from the recorded environment: {line}")
    for line in _code(interval.events):
        said(f"  {line}")
    return interval, asked, tuple(changes)


def replay_interval(
    run: RunConfig,
    folder: Path,
    start: int,
    stop: int,
    *,
    lineage: int | None = None,
    asked: Class | None = None,
    said: Callable[[str], None] = lambda line: None,
    report: Report = lambda phase, done, total: None,
) -> Replayed:
    """Execute steps start+1..stop of the run in `folder` again, from checkpoint `start` (0: from the first parameters).

    run: its config; the mesh may be another one. asked, said: as `open_compared`.
    RunError: there is no such checkpoint, or the interval was not recorded. CheckFailed: the checkpoint is damaged, or
    not the one that was journaled.
    """
    interval, asked, changes = open_compared(run, folder, start, stop, lineage=lineage, asked=asked, said=said)
    agreement = Agreement(interval.run.precision.compute)
    _, states = interval.execute(interval.state_at(start), start, stop, agreement, agreement, report)
    return Replayed(
        first=start + 1,
        last=stop,
        asked=asked,
        agreement=agreement,
        changes=changes,
        states=states,
        reason=_reason(agreement, changes),
    )


def _changes(
    events: Sequence[Event], path: Iterable[Stretch], start: int, stop: int, here: fingerprint.Fingerprint
) -> list[str]:
    """How this environment differs from those in which the interval was recorded, along the path of a lineage."""
    found: list[str] = []
    for stretch in path:
        low, high = max(start + 1, stretch.first), stop if stretch.last is None else min(stop, stretch.last)
        sessions = [s for s in _sessions(events) if s[0] == stretch.lineage]
        for (_, first, environment), after in zip(sessions, [*sessions[1:], None], strict=True):
            if low <= high and first <= high and (after is None or after[1] > low):
                lines = fingerprint.differences(fingerprint.decode(environment), here)
                found += [line for line in lines if line not in found]
    return found


def _sessions(events: Iterable[Event]) -> list[tuple[int, int, Any]]:
    """(lineage, first step, environment) of each stretch that one process recorded, in order."""
    found: list[tuple[int, int, Any]] = []
    lineages = Lineages()
    for event in events:
        lineages = lineages.after(event)
        match event:
            case {"event": "start" | "resume", "environment": environment}:
                found.append((lineages.live, event.get("step", 0) + 1, environment))
            case {"event": "rollback", "step": step} if found:  # the guard's; after one by hand comes a resume
                found.append((lineages.live, step + 1, found[-1][2]))
            case _:
                pass
    return found


def _code(events: Iterable[Event]) -> list[str]:
    recorded = {str(e["source"]["commit"]) for e in events if e["event"] in ("start", "resume") and e.get("source")}
    now = str(source_revision().commit)
    return [f"the code is revision {now[:12]}, recorded was {r[:12]}" for r in sorted(recorded - {now})]


def _reason(agreement: Agreement, changes: Sequence[str]) -> str | None:
    if agreement.first is None:
        return None
    if agreement.of_data:
        return "data: other tokens were consumed; check the store with `jaxllm data info RUN --verify`"
    if changes:
        return f"another environment: {'; '.join(changes)}"
    return "nothing that was recorded explains it: corruption, or something that is not deterministic"
