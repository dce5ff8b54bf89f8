"""Where two runs part, in config, environment, data, numbers and held-out scores. No jax."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.checkpoint import fingerprint
from jaxllm.compare.heldout import SourceScores, compare_scores
from jaxllm.compare.places import Apart, apart
from jaxllm.compare.sides import Side, read_side, relation
from jaxllm.compare.steps import Held, Span, hold
from jaxllm.core.config import differences, encode
from jaxllm.core.errors import RunError
from jaxllm.data.edits import encode_edits
from jaxllm.ledger.history import history
from jaxllm.release.agreement import Agreement, Class, satisfies
from jaxllm.run import NUMERICS, RunConfig, identity_changes

Json = dict[str, Any]
Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run `b` held against run `a`, each along its live lineage.

    forked: the step that one went on from as a fork of the other. config: differences by kind. class_: of agreement
    over the common steps, None without any. accounted: whether the steps with other data are those in which documents
    are left out, and no others; None where there are no such steps, or the stores are not here.
    """

    a: Side
    b: Side
    relation: str
    forked: int | None
    config: Mapping[str, Sequence[str]]
    environment: Sequence[str]
    held: Held
    apart: Apart
    scores: Sequence[SourceScores]
    class_: Class | None
    accounted: bool | None


def compare_runs(a: Path, b: Path) -> Comparison:
    """Read two runs and hold one against the other. RunError: one of them is no run or has no steps."""
    sides = [read_side(folder) for folder in (a, b)]
    first, second = sides
    one, other = (history(s.folder, lineages=s.lineages) for s in sides)
    held = hold(one, other, first.run.precision.compute)
    for side, columns in zip(sides, held.records, strict=True):
        if not columns:
            raise RunError(f"{side.folder} has no step that could be compared")
    words, forked = relation(first, second)
    found = apart(first, second, held.first["data"])
    return Comparison(
        a=first,
        b=second,
        relation=words,
        forked=forked,
        config=_config(first.run, second.run),
        environment=_environment(first.events, second.events),
        held=held,
        apart=found,
        scores=compare_scores(first.scores, second.scores),
        class_=_class(held.agreement, first.run, second.run) if held.common else None,
        accounted=_accounted(held, found),
    )


def agrees(found: Comparison, asked: Class) -> bool:
    """Whether the class over the common steps is the one asked for, or better."""
    return found.class_ is not None and satisfies(found.class_, asked)


def as_json(c: Comparison) -> Json:
    """For programs."""
    held, where = c.held, c.apart
    rows = {"count": where.count, "shown": [dataclasses.asdict(row) for row in where.rows]}
    return {
        "runs": [str(c.a.folder), str(c.b.folder)],
        "relation": c.relation,
        "config": c.config,
        "environment": c.environment,
        "steps": {"common": held.common, "only_first": held.only[0], "only_second": held.only[1]},
        "first_difference": held.first,
        "steps_with_other_data": {"count": count(held.other_data), "spans": held.other_data},
        "rows": None if held.first["data"] is None or where.untold is not None else rows,
        "removed": [dataclasses.asdict(p) for p in where.places],
        "removed_account_for_data": c.accounted,
        "edits": {"first": encode_edits(where.edits[0]), "second": encode_edits(where.edits[1])},
        "untold": where.untold,
        "class": c.class_,
        "largest": {name: dataclasses.asdict(d) for name, d in held.agreement.largest.items()},
        "heldout": [dataclasses.asdict(s) for s in c.scores],
    }


def count(spans: Iterable[Span]) -> int:
    """Steps in spans."""
    return sum(last - first + 1 for first, last in spans)


def _class(agreement: Agreement, a: RunConfig, b: RunConfig) -> Class:
    """Runs that differ on purpose differ by more than rounding, however close they still are."""
    amended = [line for line in identity_changes(a, b) if not line.startswith("start.")]
    return "different" if amended and agreement.found != "bitwise" else agreement.found


def _accounted(held: Held, found: Apart) -> bool | None:
    if not found.places or found.untold is not None or not held.common:
        return None
    if any(p.counted is not None for p in found.places):
        return None
    common = {*held.off.step}
    other = {s for first, last in held.other_data for s in range(first, last + 1)} & common
    return other == found.steps & common


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
