"""`jaxllm compare`: where two runs part, in config, environment, data and numbers. No jax."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.checkpoint import fingerprint
from jaxllm.core.config import differences, encode
from jaxllm.core.errors import RunError
from jaxllm.ledger.history import history, lineages_of
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import DATA, StepRecord, compare
from jaxllm.ledger.trace import RowTrace, documents_of_step
from jaxllm.release.agreement import Agreement, Class, satisfies
from jaxllm.run import NUMERICS, RunConfig, identity_changes
from jaxllm.workspace import open_run, open_store

Json = dict[str, Any]
Event = Mapping[str, Any]

_NUMBERS = {"loss": ("loss_bits",), "gradient norm": ("grad_norm_bits",), "learning rate": ("lr_bits",)}
_ROWS = 3  # that are shown of the first step with other data


def compare_runs(a: Path, b: Path) -> Json:
    """Where run `b` parts from run `a`, each along its live lineage. RunError: one of them has no steps."""
    runs = {folder: open_run(folder) for folder in (a, b)}
    events = {folder: read_journal(folder / "journal.jsonl") for folder in (a, b)}
    mine, theirs = ({r.step: r for r in history(folder)} for folder in (a, b))
    for folder, records in ((a, mine), (b, theirs)):
        if not records:
            raise RunError(f"{folder} has no step that could be compared")
    common = sorted(mine.keys() & theirs.keys())
    agreement = Agreement(runs[a].precision.compute)
    for step in common:
        agreement.hold(mine[step], theirs[step])
    other_data = _first(common, mine, theirs, DATA)
    return {
        "runs": [str(a), str(b)],
        "relation": _relation(a, b, events),
        "config": _config(runs[a], runs[b]),
        "environment": _environment(events[a], events[b]),
        "steps": {
            "common": len(common),
            "only_first": len(mine) - len(common),
            "only_second": len(theirs) - len(common),
        },
        "first_difference": {
            "data": other_data,
            **{name: _first(common, mine, theirs, fields) for name, fields in _NUMBERS.items()},
        },
        "rows": None if other_data is None else _rows(a, b, other_data),
        "class": _class(agreement, runs[a], runs[b]) if common else None,
        "largest": {name: dataclasses.asdict(d) for name, d in agreement.largest.items()},
    }


def agrees(found: Json, asked: Class) -> bool:
    """Whether the class over the common steps is the one asked for, or better."""
    return found["class"] is not None and satisfies(found["class"], asked)


def lines(found: Json) -> list[str]:
    """For people."""
    a, b = found["runs"]
    said = [f"{a} and {b}: {found['relation']}"]
    for kind, changes in found["config"].items():
        said += [f"config, {kind}:", *(f"  {line}" for line in changes)] if changes else []
    if found["environment"]:
        said += ["environment:", *(f"  {line}" for line in found["environment"])]
    steps = found["steps"]
    said.append(
        f"{steps['common']} steps in both, {steps['only_first']} and {steps['only_second']} in one of them alone"
    )
    for name, step in found["first_difference"].items():
        said.append(f"  {name}: " + ("equal in all of them" if step is None else f"other from step {step} on"))
    if found["rows"]:
        rows = found["rows"]
        said.append(f"  step {found['first_difference']['data']} has {rows['count']} other rows:")
        for row in rows["shown"]:
            said.append(f"    row {row['row']}: {row['first']} | {row['second']}")
    if found["class"] is not None:
        said.append(f"class of agreement over the common steps: {found['class']}")
    for name, d in found["largest"].items():
        said.append(
            f"  largest deviation of {name}: {d['relative']:.2g} relative, {d['ulp']:,} ulp, at step {d['step']}"
        )
    return said


def _class(agreement: Agreement, a: RunConfig, b: RunConfig) -> Class:
    """Runs that differ on purpose differ by more than rounding, however close they still are."""
    amended = [line for line in identity_changes(a, b) if not line.startswith("start.")]
    return "different" if amended and agreement.found != "bitwise" else agreement.found


def _relation(a: Path, b: Path, events: Mapping[Path, Sequence[Event]]) -> str:
    for child, parent in ((b, a), (a, b)):
        for event in events[child]:
            if event["event"] == "fork" and event["origin"]["journal_head"] in {e["hash"] for e in events[parent]}:
                return f"{child} is a fork of {parent}, from step {event['step']} on"
    return "two runs of their own"


def _config(a: RunConfig, b: RunConfig) -> dict[str, list[str]]:
    one, other = encode(a), encode(b)
    rest = [k for k in one if k not in NUMERICS and k not in ("name", "io")]
    identity = identity_changes(a, b)
    numerics = differences({k: one[k] for k in NUMERICS}, {k: other[k] for k in NUMERICS})
    everything = differences({k: one[k] for k in rest}, {k: other[k] for k in rest})
    return {
        "identity": identity,
        "numerics": numerics,
        "the rest": [line for line in everything if line not in identity and not line.startswith("start.folder")],
    }


def _environment(a: Iterable[Event], b: Iterable[Event]) -> list[str]:
    newest = [
        next((e["environment"] for e in reversed(list(side)) if e["event"] in ("start", "resume")), None)
        for side in (a, b)
    ]
    if newest[0] is None or newest[1] is None:
        return []
    return fingerprint.differences(fingerprint.decode(newest[0]), fingerprint.decode(newest[1]))


def _first(
    common: Iterable[int], a: Mapping[int, StepRecord], b: Mapping[int, StepRecord], fields: Iterable[str]
) -> int | None:
    wanted = set(fields)
    return next((s for s in common if wanted & set(compare(a[s], b[s]))), None)


def _rows(a: Path, b: Path, step: int) -> Json | None:
    """How the rows of a step differ, as far as the stores are here to tell."""
    try:
        first, second = (_traced(folder, step) for folder in (a, b))
    except RunError:
        return None
    other = [row for row in sorted(first.keys() | second.keys()) if first.get(row) != second.get(row)]
    shown = [{"row": r, "first": first.get(r, "none"), "second": second.get(r, "none")} for r in other[:_ROWS]]
    return {"count": len(other), "shown": shown}


def _traced(folder: Path, step: int) -> dict[int, str]:
    run, store = open_store(open_run(folder), folder)
    edits = lineages_of(folder).edits()
    return {row.row: _words(row) for row in documents_of_step(store, run.data, run.seed, step, edits)}


def _words(row: RowTrace) -> str:
    gone = [span.id for span in row.spans if span.removed]
    return f"{row.source} epoch {row.epoch} window {row.window}" + (f" without {', '.join(gone)}" if gone else "")
