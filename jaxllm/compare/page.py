"""A comparison as one HTML file that needs nothing else. No jax."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from jaxllm.compare.heldout import SourceScores
from jaxllm.compare.lines import accounted_words, edit_words, score_words, span_words
from jaxllm.compare.places import Places
from jaxllm.compare.sides import Side
from jaxllm.compare.steps import PARTS, Span
from jaxllm.compare.values import Comparison, count
from jaxllm.report.chart import Line, Mark, chart, mark_key
from jaxllm.report.html import document, heading, none, table, write_page
from jaxllm.report.thin import Point

_LISTED = 200  # documents that are left out
_DOCUMENTS = 6  # of a row
_STEPS = 100_000  # of places that are drawn
_SPANS = 40  # of steps that are listed


def write_comparison(c: Comparison, out: Path) -> None:
    """Write the page. RunError: there is no such folder."""
    write_page(out, page(c))


def page(c: Comparison) -> str:
    """The HTML."""
    sections = {title: fill(c) for title, fill in SECTIONS.items()}
    return document(f"{_name(c, 0)} and {_name(c, 1)}: jaxllm compare", _header(c), sections)


def _header(c: Comparison) -> str:
    held, amended = c.held, sum(map(len, c.config.values()))
    items = {
        "first": str(c.a.folder),
        "second": str(c.b.folder),
        "relation": c.relation,
        "class": c.class_ or "no step is in both",
        "steps": f"{held.common:,} in both, {held.only[0]:,} in the first alone, {held.only[1]:,} in the second alone",
        "config": f"{amended:,} fields differ" if amended else "equal",
        "environment": f"{len(c.environment):,} fields differ" if c.environment else "equal",
    }
    for part, step in held.first.items():
        items[part] = "equal in all common steps" if step is None else f"other from step {step:,} on"
    for name, d in held.agreement.largest.items():
        words = name.replace("grad_norm", "gradient norm")
        items[f"largest deviation of {words}"] = f"{d.relative:.2g} relative, {d.ulp:,} ulp, at step {d.step:,}"
    return heading(f"{_name(c, 0)} and {_name(c, 1)}", items)


def _numbers(c: Comparison) -> str:
    """Both runs, what lies between them, and where they part."""
    marks, both = _marks(c), ("loss", "grad_norm", "lr")
    titles = dict(zip(both, ("Training loss, nats per token", "Gradient norm", "Learning rate"), strict=True))
    charts = []
    for name in both:
        lines = [
            Line(name=_name(c, i), colour=i, wide=i == 0, points=records.points(name))
            for i, records in enumerate(c.held.records)
        ]
        charts.append(chart(titles[name], lines, marks, scale="log" if name == "grad_norm" else "linear"))
        off = Line(name="", colour=2, alone=True, points=c.held.off.points(name))
        title = f"{titles[name].split(',')[0]}: the second less the first, as a part of the first"
        charts.append(chart(title, [off] if c.held.common else [], marks, scale="signed"))
    note = (
        '<p class="dim">Below, on a scale of powers of ten on both sides of a line of its own for what is equal to the '
        "bit: rounding lies near 1e-7.</p>"
    )
    return _key(marks) + note + f'<div class="charts">{"".join(charts)}</div>'


def _heldout(c: Comparison) -> str:
    """Scores of every source, and how they compare."""
    if not c.scores:
        return none("Neither run has held-out scores.")
    marks, charts = _marks(c), []
    for s in c.scores:
        lines = [_scored(_name(c, i), i, s, side) for i, side in enumerate((c.a, c.b))]
        charts.append(chart(f"{s.source}: held-out bits per byte", lines, marks))
    said = "".join(f"<li>{escape(score_words(s))}{escape(_alone(s))}</li>" for s in c.scores)
    return f'<div class="charts">{"".join(charts)}</div><ul>{said}</ul>'


def _alone(s: SourceScores) -> str:
    return f". {s.common:,} steps have a score of both, {s.only_first:,} and {s.only_second:,} of one alone."


def _scored(name: str, colour: int, s: SourceScores, side: Side) -> Line:
    points = [Point(h.step, h.bits_per_byte) for h in side.scores if h.source == s.source]
    return Line(name=name, colour=colour, wide=colour == 0, dots=True, points=points)


def _config(c: Comparison) -> str:
    """Every field that differs, by what it decides."""
    titles = {
        "identity": "What the runs are (identity)",
        "numerics": "How they compute (numerics)",
        "the rest": "The rest",
    }
    parts = [f"<h3>{escape(titles.get(kind, kind))}</h3>{_fields(lines)}" for kind, lines in c.config.items() if lines]
    return "".join(parts) or none("Equal, but for names and places.")


def _environment(c: Comparison) -> str:
    """What computed them, as recorded by the newest process of either."""
    return _fields(c.environment) if c.environment else none("Equal, as far as both recorded it.")


def _fields(lines: Sequence[str]) -> str:
    pairs = (line.partition(": ") for line in lines)
    return table(("field", "first -> second"), [(field, change) for field, _, change in pairs])


def _data(c: Comparison) -> str:
    """Where the data parts: edits, rows of the first step, places of what is left out."""
    step, where, parts = c.held.first["data"], c.apart, []
    if step is None:
        parts.append(none("Equal in all common steps."))
    else:
        spans = f"{count(c.held.other_data):,} common steps have other data: {span_words(c.held.other_data, _SPANS)}."
        parts.append(f"<p>{escape(spans)}</p>")
    if (words := accounted_words(c)) is not None:
        parts.append(f"<p>{escape(words[0].upper() + words[1:])}.</p>")
    if where.untold is not None:
        parts.append(none(f"Rows and documents cannot be named: {where.untold}."))
    edits = [(n, edit_words(e)) for n, some in zip(("first", "second"), where.edits, strict=True) for e in some]
    if edits:
        parts.append(f"<h3>Edits of one stream alone</h3>{table(('run', 'what happened'), edits)}")
    if where.rows and step is not None:
        rows = [
            (str(r.row), r.first + _some(r.first_documents), r.second + _some(r.second_documents)) for r in where.rows
        ]
        more = f" The first {len(rows)} of them." if where.count > len(rows) else ""
        parts.append(f"<h3>Step {step:,}</h3><p>It has {where.count:,} other rows.{more}</p>")
        parts.append(table(("row#", "first, with its documents", "second, with its documents"), rows))
    if where.places:
        parts.append(_left_out(c, where.places))
    return "".join(parts)


def _left_out(c: Comparison, places: Sequence[Places]) -> str:
    """The places of documents that one run leaves out: over steps, and one by one."""
    marks, lines = _marks(c), []
    for run in (1, 2):
        steps = Counter(s for p in places if p.run == run for s in _drawn(p.steps))
        points = [Point(step, float(n)) for step, n in sorted(steps.items())]
        lines.append(Line(name=f"left out by {_name(c, run - 1)}", colour=run - 1, alone=True, points=points))
    picture = chart("Documents left out, by step in which they would have been", lines, marks, zero=True)
    rows = [
        (
            _name(c, p.run - 1),
            p.source,
            p.document or "the whole source",
            f"{p.rows:,}",
            f"{p.tokens:,}",
            span_words(p.steps, _SPANS) or "none",
        )
        for p in places[:_LISTED]
    ]
    more = f"<p>The first {_LISTED:,} of {len(places):,}.</p>" if len(places) > _LISTED else ""
    limit = max((p.counted or 0 for p in places), default=0)
    note = f'<p class="dim">Of whole sources, the first {limit:,} rows were looked at.</p>' if limit else ""
    columns = ("left out by", "source", "document", "rows#", "tokens#", "steps")
    return f'<h3>Left out</h3><div class="charts">{picture}</div>{more}{note}{table(columns, rows)}'


def _drawn(spans: Sequence[Span]) -> list[int]:
    steps: list[int] = []
    for first, last in spans:
        steps += range(first, min(last, first + _STEPS - len(steps) - 1) + 1)
    return steps


def _marks(c: Comparison) -> list[Mark]:
    """One for every step at which something parts."""
    found: dict[int, list[str]] = {}
    if c.forked is not None:
        found[c.forked] = ["fork" + (", config" if c.config["identity"] or c.config["numerics"] else "")]
    for part in PARTS:
        step = c.held.first[part]
        if step is not None:
            found.setdefault(step, []).append(part)
    return [
        Mark(
            step=step,
            kind="data" if "data" in parts else "parts",
            text=f"step {step:,}: {', '.join(parts)}",
            href="#data" if "data" in parts else "#config" if step == c.forked else "#numbers",
        )
        for step, parts in sorted(found.items())
    ]


def _key(marks: Sequence[Mark]) -> str:
    if not marks:
        return ""
    return "<p>They part where the upright lines are:</p>" + mark_key((m.kind, m.text) for m in marks)


def _some(documents: Sequence[str]) -> str:
    more = len(documents) - _DOCUMENTS
    said = ", ".join(documents[:_DOCUMENTS]) + (f" and {more} more" if more > 0 else "")
    return f": {said}" if said else ""


def _name(c: Comparison, which: int) -> str:
    """Runs of one name are told apart by their folders."""
    side = (c.a, c.b)[which]
    return side.run.name if c.a.run.name != c.b.run.name else str(side.folder)


# Title -> what fills it, in the order of the page.
SECTIONS: Mapping[str, Callable[[Comparison], str]] = {
    "Numbers": _numbers,
    "Held out": _heldout,
    "Config": _config,
    "Environment": _environment,
    "Data": _data,
}
