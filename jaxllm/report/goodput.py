"""Where the time of a run went, as far as its records let one say.

The only clocks that a run writes down are the times of its journal's events and of the lines of metrics.jsonl. Between
two logged steps of a process lies what those steps took (their measured mean times their number) and a rest: saves,
evaluations, norms. Between two processes lies the time in which nobody worked. What is told apart by less than that is
not told apart here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jaxllm.report.speeds import Section, Speeds

Event = Mapping[str, Any]

_SLACK = 0.002  # times are written in milliseconds
_ENDS = ("stop", "finish", "guard_stop")

# Key -> what a person reads, and from what it was taken. The order is that of the bar.
PARTS: Mapping[str, tuple[str, str]] = {
    "training": ("training", "steps that the run stands on, by their logged mean time"),
    "waiting": ("waiting for data", "the logged share of the steps' time"),
    "again": ("steps done again", "up to where an earlier process was already known to have been"),
    "left": ("steps left by rollbacks", "steps of lineages that the run has left"),
    "starting": ("starting and restoring", "from a process's first word to its first logged step, less those steps"),
    "between": ("saving, evaluating, the rest", "between logged steps, less the steps themselves"),
    "absent": ("no process", "from the last sign of one process to the first of the next"),
}
UNRECORDED = (
    "Compilation is not recorded by itself: it lies in starting, and in the rest where a batch size changes.",
    "Saving and evaluating are not recorded by themselves: they lie in the rest between logged steps.",
    "What a process did before it opened the run's files, and after its last sign, is not recorded.",
    "How far a killed process got is known from its last logged step: steps done again are counted from there.",
)


@dataclass(kw_only=True)
class Goodput:
    """Seconds by part; `total` from the first sign of the run to its last. untold: why there are none."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    total: float = 0.0
    processes: int = 0
    untold: str | None = None

    @property
    def share(self) -> float | None:
        """The part of the time that went into steps that the run stands on."""
        return self.seconds["training"] / self.total if self.total > 0 else None


@dataclass(kw_only=True)
class _Process:
    first: float
    last: float
    sections: list[Section]


def seconds_of(time: str) -> float:
    """An event's time as seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


def goodput(events: Sequence[Event], speeds: Speeds) -> Goodput:
    """Account for every second between the first and the last sign of a run, once."""
    found = Goodput()
    processes = _processes(events, speeds.sections)
    if not speeds.sections:
        found.untold = "metrics.jsonl, which has the times, is not there"
        return found
    if not any(s.logged for s in speeds.sections):
        found.untold = "no step has been logged yet"
        return found
    found.processes = len(processes)
    backs = [(seconds_of(e["time"]), int(e["step"])) for e in events if e["event"] == "rollback"]
    reached, began = 0, 0.0
    before: float | None = None
    for process in processes:
        if before is not None:
            found.seconds["absent"] += max(process.first - before, 0.0)
        clock, starting = process.first, True
        for section in process.sections:
            # What was left is not done again: it is other steps of the same numbers.
            past = [step for time, step in backs if began < time <= section.began + _SLACK]
            reached, began = min([reached, *past]), section.began
            done = section.after
            for logged in section.logged:
                left_after = min((step for time, step in backs if time > logged.time), default=None)
                steps = range(done + 1, logged.step + 1)
                _account(found, logged, logged.time - clock, steps, reached, left_after, starting)
                clock, done, starting = max(clock, logged.time), max(done, logged.step), False
            reached = max(reached, done)
        found.seconds["starting" if starting else "between"] += max(process.last - clock, 0.0)
        before = max(process.last, clock)
    found.total = sum(found.seconds.values())
    return found


def _account(
    found: Goodput,
    logged: Any,
    wall: float,
    steps: range,
    again_until: int,
    left_after: int | None,
    starting: bool,
) -> None:
    """Share out the wall seconds between one logged step and the one before."""
    wall = max(wall, 0.0)
    each = logged.seconds_per_step or 0.0
    stepping = min(each * len(steps), wall)
    found.seconds["starting" if starting else "between"] += wall - stepping
    if not steps:
        return
    each = stepping / len(steps)
    again = sum(1 for s in steps if s <= again_until)
    left = sum(1 for s in steps if s > again_until and left_after is not None and s > left_after)
    useful = each * (len(steps) - again - left)
    waiting = min(max(logged.waiting_share, 0.0), 1.0)
    found.seconds["again"] += each * again
    found.seconds["left"] += each * left
    found.seconds["waiting"] += useful * waiting
    found.seconds["training"] += useful * (1 - waiting)


def _processes(events: Sequence[Event], sections: Iterable[Section]) -> list[_Process]:
    """Sections by process, each with its first and last sign. An end that a person's edit follows is an end all the
    same: only what a process writes of itself counts as a sign of it."""
    found: list[_Process] = []
    for section in sections:
        if not section.went_back or not found:
            found.append(_Process(first=section.began, last=section.last, sections=[section]))
        else:
            found[-1].sections.append(section)
            found[-1].last = section.last
    ends = [seconds_of(e["time"]) for e in events if e["event"] in (*_ENDS, "checkpoint", "spike", "refused", "stage")]
    for number, process in enumerate(found):
        until = found[number + 1].first if number + 1 < len(found) else float("inf")
        process.last = max([process.last, *(t for t in ends if process.first <= t < until)])
    return found
