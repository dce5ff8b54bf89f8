"""A comparison as lines for people."""

from collections.abc import Sequence

from jaxllm.compare.heldout import Pair, SourceScores
from jaxllm.compare.places import Places
from jaxllm.compare.steps import Span
from jaxllm.compare.values import Comparison, count
from jaxllm.data.edits import Edit
from jaxllm.report.html import many

_ROWS = 3  # of the first step with other data
_PLACES = 12  # documents that are left out
_SPANS = 8  # of steps
_EDITED = {"skip": "left out", "defer": "moved to the end of the stage"}


def lines(c: Comparison) -> list[str]:
    """Where they part, from what they are to what came out."""
    said = [f"{c.a.folder} and {c.b.folder}: {c.relation}"]
    for kind, changes in c.config.items():
        said += [f"config, {kind}:", *(f"  {line}" for line in changes)] if changes else []
    if c.environment:
        said += ["environment:", *(f"  {line}" for line in c.environment)]
    held = c.held
    said.append(f"{held.common} steps in both, {held.only[0]} and {held.only[1]} in one of them alone")
    for name, step in held.first.items():
        said.append(f"  {name}: " + ("equal in all of them" if step is None else f"other from step {step} on"))
    said += _data(c)
    if c.class_ is not None:
        said.append(f"class of agreement over the common steps: {c.class_}")
    for name, d in held.agreement.largest.items():
        said.append(f"  largest deviation of {name}: {d.relative:.2g} relative, {d.ulp:,} ulp, at step {d.step}")
    if c.scores:
        said += ["held out, bits per byte:", *(f"  {score_words(s)}" for s in c.scores)]
    return said


def _data(c: Comparison) -> list[str]:
    said, step = [], c.held.first["data"]
    for number, edits in zip(("first", "second"), c.apart.edits, strict=True):
        said += [f"  the stream of the {number} alone: {edit_words(e)}" for e in edits]
    if c.apart.rows:
        said.append(f"  step {step} has {c.apart.count} other rows:")
        said += [f"    row {row.row}: {row.first} | {row.second}" for row in c.apart.rows[:_ROWS]]
    said += [f"  {place_words(p)}" for p in c.apart.places[:_PLACES]]
    if len(c.apart.places) > _PLACES:
        said.append(f"  and {len(c.apart.places) - _PLACES:,} more documents are left out")
    if c.held.other_data:
        said.append(f"  other data in {count(c.held.other_data):,} common steps: {span_words(c.held.other_data)}")
    if (words := accounted_words(c)) is not None:
        said.append(f"  {words}")
    if c.apart.untold is not None:
        said.append(f"  its rows and documents cannot be named: {c.apart.untold}")
    return said


def accounted_words(c: Comparison) -> str | None:
    """Whether what was left out is all that differs in the data."""
    if c.accounted is None:
        return None
    if c.accounted:
        return "the places of what is left out are these steps and no others"
    return "that is not only because of what is left out: there are other steps among them, or some are missing"


def edit_words(edit: Edit) -> str:
    """What an edit does to the stream."""
    return f"sequences {edit.first:,} to {edit.first + edit.count - 1:,} {_EDITED[edit.kind]}"


def place_words(p: Places) -> str:
    """What is left out and where it would have been."""
    what = f"source {p.source}" if p.document is None else f"{p.document} of {p.source}"
    limit = "" if p.counted is None else f" (of the first {p.counted:,} rows)"
    if not p.rows:
        return f"left out: {what}, which none of its later steps has{limit}"
    return f"left out: {what}, {many(p.tokens, 'token')} in {many(p.rows, 'row')}, {_at(p.steps)}{limit}"


def score_words(s: SourceScores) -> str:
    """How a source's scores compare."""
    if not s.common:
        if s.other_labels:
            return f"{s.source}: scored over different numbers of labels, which says nothing"
        return f"{s.source}: no common step has a score of both"
    if s.first_difference is None:
        return f"{s.source}: equal at all {s.common} common steps"
    said = f"{s.source}: other from step {s.first_difference} on"
    if s.largest is not None:
        said += f", at most by {abs(_less(s.largest)):.2g} (step {s.largest.step})"
    if s.last is not None:
        less = "" if None in (s.last.first, s.last.second) else f" ({_less(s.last):+.2g})"
        said += f"; at step {s.last.step} {_bits(s.last.first)} and {_bits(s.last.second)}{less}"
    return said


def span_words(spans: Sequence[Span], most: int = _SPANS) -> str:
    """Steps, the first spans of them."""
    said = ", ".join(f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in spans[:most])
    return said + (f" and {len(spans) - most:,} more spans" if len(spans) > most else "")


def _at(spans: Sequence[Span]) -> str:
    one = len(spans) == 1 and spans[0][0] == spans[0][1]
    return f"step{'' if one else 's'} {span_words(spans)}"


def _less(pair: Pair) -> float:
    assert pair.first is not None and pair.second is not None
    return pair.second - pair.first


def _bits(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6f}"
