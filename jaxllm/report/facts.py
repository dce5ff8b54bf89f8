"""The numbers of a report, gathered from a run folder: journal, records, losses, metrics, config. No jax."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.fold import Present, present
from jaxllm.ledger.history import losses_along
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lease import is_held
from jaxllm.ledger.losses import NEVER
from jaxllm.ledger.trace import documents_of_step
from jaxllm.report.goodput import Goodput, goodput
from jaxllm.report.recorded import Recorded, read_recorded
from jaxllm.report.speeds import Speeds, read_speeds
from jaxllm.run import RunConfig, identity_hash
from jaxllm.workspace import open_run, store_at_hand

AROUND = 12  # steps before and after a spike that its close-up shows
CLOSE_UPS = 24  # the newest ones
LISTED = 2000  # events
_ROWS = 8  # sequences of a step that are shown, by loss
_COUNTED = 1 << 20  # sequences whose source is looked up at most

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sequence of a step: mean loss in nats (None: not finite or not recorded), and the documents in it."""

    row: int
    source: str
    loss: float | None
    recorded: bool
    documents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CloseUp:
    """What happened around a step of a lineage. seqs: the events that it belongs to. rows: worst first."""

    lineage: int
    step: int
    seqs: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def anchor(self) -> str:
        """Its name in the page."""
        return f"closeup-{self.lineage}-{self.step}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Sequences of a source in a stage: planned part, and how many of those `counted` so far were of it."""

    stage: str
    source: str
    planned: float
    sequences: int
    counted: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run as its record tells it. storeless: why nothing can be said of documents."""

    folder: Path
    run: RunConfig
    identity: str
    events: Sequence[Event]
    now: Present
    held: bool | None
    steps: Recorded
    speeds: Speeds
    goodput: Goodput
    mixture: Sequence[Share]
    close_ups: Sequence[CloseUp]
    close_ups_left_out: int
    storeless: str | None

    @property
    def step(self) -> int:
        """The last one that was recorded."""
        return self.now.lineages.origin if self.steps.last is None else self.steps.last

    @property
    def listed(self) -> Sequence[Event]:
        """The events that are shown one by one: all, or of so many the newest, and saves only where there is room."""
        spare = max(LISTED - sum(e["event"] != "checkpoint" for e in self.events), 0)
        saves = [e["seq"] for e in self.events if e["event"] == "checkpoint"]
        shown = {*saves[max(len(saves) - spare, 0) :]}
        return [e for e in self.events if e["event"] != "checkpoint" or e["seq"] in shown][-LISTED:]


def gather(folder: Path) -> Facts:
    """Read a run. RunError, LedgerError: it is none, or its record does not hold."""
    run = open_run(folder)
    journal = folder / "journal.jsonl"
    events = read_journal(journal) if journal.is_file() else []
    now, speeds = present(events), read_speeds(folder)
    steps = read_recorded(folder, now.lineages)
    store, why = store_at_hand(run, folder)
    table = StepTable(run.data.stages)
    wanted = _spots(events)
    return Facts(
        folder=folder,
        run=run,
        identity=now.identity or identity_hash(run),
        events=events,
        now=now,
        held=is_held(folder),
        steps=steps,
        speeds=speeds,
        goodput=goodput(events, speeds),
        mixture=[] if store is None else _mixture(run, store, now, steps.last or 0),
        close_ups=[
            CloseUp(lineage=at[0], step=at[1], seqs=tuple(seqs), rows=_rows(folder, run, store, table, now, *at))
            for at, seqs in wanted[-CLOSE_UPS:]
        ],
        close_ups_left_out=max(len(wanted) - CLOSE_UPS, 0),
        storeless=why,
    )


def _spots(events: Sequence[Event]) -> list[tuple[tuple[int, int], list[int]]]:
    """(lineage, step) of every spike and of the end of every lineage that was left, with the events that say so."""
    found: dict[tuple[int, int], list[int]] = {}
    for event in events:
        if event["event"] in ("spike", "refused"):
            found.setdefault((event["lineage"], event["step"]), []).append(event["seq"])
        if event["event"] == "rollback":
            spikes = [k for k in found if k[0] == event["parent"] and event["step"] < k[1] <= event["last"]]
            at = max(spikes, key=lambda k: k[1], default=(event["parent"], event["last"]))
            found.setdefault(at, []).append(event["seq"])
    return list(found.items())


def _mixture(run: RunConfig, store: Store, now: Present, last: int) -> list[Share]:
    stream, table = stream_of_run(run.data, run.seed, store, now.lineages.edits())
    names, found = [s.name for s in stream.sources], []
    for number, stage in enumerate(run.data.stages):
        low = table.consumed(table.stage_start(number) - 1)
        high = table.consumed(max(min(last, table.stage_end(number)), table.stage_start(number) - 1))
        counted = min(high - low, _COUNTED)
        rows = stream.rows(np.arange(low, low + counted)).source if counted else np.zeros(0, np.int32)
        total = sum(share.weight for share in stage.mixture)
        for share in stage.mixture:
            sequences = int((rows == names.index(share.source)).sum())
            found.append(
                Share(
                    stage=stage.name,
                    source=share.source,
                    planned=share.weight / total,
                    sequences=sequences,
                    counted=counted,
                )
            )
    return found


def _rows(
    folder: Path, run: RunConfig, store: Store | None, table: StepTable, now: Present, lineage: int, step: int
) -> tuple[Row, ...]:
    if store is None or not 1 <= step <= table.steps:
        return ()
    first, count, _ = table.span(step)
    sums, counts = losses_along(folder, table, now.lineages, first, first + count, lineage)
    found = []
    for trace in documents_of_step(store, run.data, run.seed, step, now.lineages.edits(lineage)):
        total, labels = float(sums[trace.row]), int(counts[trace.row])
        found.append(
            Row(
                row=trace.row,
                source=trace.source,
                loss=total / labels if labels > 0 and np.isfinite(total) else None,
                recorded=labels != NEVER,
                documents=tuple(span.id for span in trace.spans),
            )
        )
    return tuple(sorted(found, key=lambda r: (-1.0 if r.loss is None else 0.0, -(r.loss or 0.0), r.row))[:_ROWS])
