"""A run as one of the two that are compared. No jax."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.report.speeds import HeldOut, read_speeds
from jaxllm.run import RunConfig
from jaxllm.workspace import open_run

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A run along its live lineage. scores: held-out ones, by step and source."""

    folder: Path
    run: RunConfig
    events: Sequence[Event]
    lineages: Lineages
    scores: Sequence[HeldOut]


def read_side(folder: Path) -> Side:
    """All of a run but its steps. RunError, LedgerError: it is none, or its record does not hold."""
    run = open_run(folder)
    events = read_journal(folder / "journal.jsonl")
    return Side(
        folder=folder,
        run=run,
        events=events,
        lineages=Lineages.of(events),
        scores=read_speeds(folder).standing()[1],
    )


def relation(a: Side, b: Side) -> tuple[str, int | None]:
    """Whether one is a fork of the other, in words, and the step that it went on from."""
    for child, parent in ((b, a), (a, b)):
        for event in child.events:
            if event["event"] == "fork" and event["origin"]["journal_head"] in {e["hash"] for e in parent.events}:
                step = int(event["step"])
                return f"{child.folder} is a fork of {parent.folder}, from step {step} on", step
    return "two runs of their own", None
