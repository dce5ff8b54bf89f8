"""Charts as SVG: lines over steps, what was left behind in grey, marks that lead to events. No script is needed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from jaxllm.report.scale import Kind, Scale, number, scale_of, steps_between
from jaxllm.report.thin import Point, thin

WIDTH, HEIGHT = 720, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 12, 12, 34
_COLOURS = 6  # classes c0..c5 of the style
_STRIPS = 90  # spans of steps that say their values, wherever in them one points
_DOTTED = 100  # points that are shown one by one
_APART = 4  # units between two marks that are told apart
ODD = ("spike", "rollback")  # kinds of marks that come before others
Place = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points by step. left: of a lineage that the run has left. colour: a number, by which lines are told apart.

    dots: few points, each of which counts.
    """

    name: str
    points: Sequence[Point]
    left: bool = False
    colour: int = 0
    dots: bool = False
    alone: bool = False  # points that no line joins
    wide: bool = False  # to be seen where another one lies on it


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An upright line at a step; kind is the event's name, href where it leads (an anchor of the page)."""

    step: int
    kind: str
    text: str
    href: str


def chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    scale: Kind = "linear",
    zero: bool = False,
    whole: bool = False,
) -> str:
    """An SVG of lines over steps, with a legend if there are several; a sentence if there is no point.

    What lies far above the lines that stand (a spike among thousands of steps) is drawn as a triangle at the upper
    edge, with its value, and what is not finite as a cross. whole: the axis spans what was left, too.
    """
    shown = [line for line in lines if line.points]
    values = [p.value for line in shown for p in line.points if p.value is not None]
    if not values:
        return f'<p class="none">{escape(title)}: nothing was recorded.</p>'
    standing = [
        p.value for line in shown if whole or not line.left for p in line.points if p.value is not None
    ] or values
    axis = scale_of(scale, standing, everything=values, zero=zero)
    first, last = min(line.points[0].step for line in shown), max(line.points[-1].step for line in shown)

    def x(step: float) -> float:
        return _LEFT + (step - first) / max(last - first, 1) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1 - axis.at(value)) * (HEIGHT - _TOP - _BOTTOM)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick, words in axis.ticks():
        kind = "grid zero" if tick == 0 and scale == "signed" else "grid"
        out.append(f'<line class="{kind}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y(tick) + 5:.1f}">{words}</text>')
    for tick in [t for t in steps_between(first, last) if t == int(t)] or [first]:
        anchor = "end" if x(tick) > WIDTH - 52 else "middle"
        out.append(f'<text class="tick" text-anchor="{anchor}" x="{x(tick):.1f}" y="{HEIGHT - 8}">{int(tick):,}</text>')
    drawn = [(line, thin(line.points)) for line in sorted(shown, key=lambda line: not line.left)]
    out += _strips(drawn, first, last, x)
    out += _marked([m for m in marks if first <= m.step <= last], x)
    for line, points in drawn:
        out += _drawn(line, points, x, y, axis)
    out.append("</svg>")
    named = [line for line in shown if line.name]
    if len(named) > 1:
        keys = (f'<li class="{_class(line)}">{escape(line.name)}</li>' for line in named)
        out.append(f'<ul class="legend">{"".join(dict.fromkeys(keys))}</ul>')
    said = " (logarithmic)" if scale == "log" and min(values) > 0 else ""
    return f"<figure><figcaption>{escape(title)}{said}</figcaption>{''.join(out)}</figure>"


def _marked(marks: Sequence[Mark], x: Place) -> list[str]:
    """Marks at one place are one line, which leads to the first of them and has the words of them all."""
    groups: dict[int, list[Mark]] = {}
    for mark in marks:
        groups.setdefault(round(x(mark.step) / _APART), []).append(mark)
    out = []
    for group in groups.values():
        lead = next((m for m in group if m.kind in ODD), group[0])
        said = "\n".join(dict.fromkeys(m.text for m in group[:6]))
        said += f"\nand {len(group) - 6:,} more" if len(group) > 6 else ""
        at = f'x1="{x(lead.step):.1f}" x2="{x(lead.step):.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"'
        upright = f'<line class="mark {escape(lead.kind)}" {at}/><line class="reach" {at}><title>{escape(said)}</title>'
        out.append(f'<a href="{escape(lead.href)}">{upright}</line></a>')
    return out


def _strips(drawn: Sequence[tuple[Line, Sequence[Point]]], first: int, last: int, x: Place) -> list[str]:
    """Upright bands that nobody sees, each with the steps below it and what the lines were there."""
    count = min(_STRIPS, last - first + 1)
    edges = [first - 0.5 + (last - first + 1) * i / count for i in range(count + 1)]
    words: list[list[str]] = [[] for _ in range(count)]
    for line, points in drawn:
        inside: dict[int, list[Point]] = {}
        for p in points:
            inside.setdefault(min((p.step - first) * count // (last - first + 1), count - 1), []).append(p)
        for band, some in inside.items():
            finite = [p.value for p in some if p.value is not None]
            low, high = (number(min(finite)), number(max(finite))) if finite else ("not finite",) * 2
            words[band].append(f"{line.name} {low}" + (f" to {high}" if high != low else ""))
    out = []
    for i, said in enumerate(words):
        if not said:
            continue
        begin, end = round(edges[i] + 0.5), round(edges[i + 1] - 0.5)
        where = f"step {begin:,}" if begin >= end else f"steps {begin:,} to {end:,}"
        left, right = (min(max(x(e), _LEFT - 4), WIDTH - _RIGHT + 4) for e in edges[i : i + 2])
        place = f'x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{HEIGHT - _TOP - _BOTTOM}"'
        text = escape("\n".join([where, *(part.strip() for part in said)]))
        out.append(f'<rect class="reach" {place}><title>{text}</title></rect>')
    return out


def _drawn(line: Line, points: Sequence[Point], x: Place, y: Place, axis: Scale) -> list[str]:
    out: list[str] = []
    run: list[str] = []
    pieces: list[list[str]] = []
    for p in points:
        if p.value is None:
            pieces, run = [*pieces, run], []
            out.append(
                f'<text class="odd" text-anchor="middle" x="{x(p.step):.1f}" y="{_TOP + 10}">'
                f"&#215;<title>step {p.step:,}: not finite</title></text>"
            )
            continue
        run.append(f"{x(p.step):.1f},{y(p.value):.1f}")
        text = f"<title>{escape(line.name)} step {p.step:,}: {number(p.value)}</title>"
        if p.value > axis.top:
            a = x(p.step)
            out.append(f'<path class="odd" d="M{a - 5:.1f} {_TOP + 8}h10l-5 -8z">{text}</path>')
        elif len(points) <= _DOTTED:
            place = f'cx="{x(p.step):.1f}" cy="{y(p.value):.1f}"'
            out.append(
                f'<circle class="{_class(line)}" r="{3 if line.dots or line.alone else 2}" {place}>{text}</circle>'
            )
    lines = [r for r in [*pieces, run] if r]
    if line.alone:
        dots = "".join(f"M{at}h0" for r in lines for at in r)
        return [f'<path class="dots {_class(line)}" d="{dots}"/>', *out]
    return [*(f'<polyline class="{_class(line)}" points="{" ".join(r)}"/>' for r in lines if len(r) > 1), *out]


def _class(line: Line) -> str:
    return "left" if line.left else f"c{line.colour % _COLOURS}" + (" wide" if line.wide else "")


def mark_key(entries: Iterable[tuple[str, str]]) -> str:
    """What the upright lines of charts are: (kind of mark, words), each once."""
    items = (f'<li class="upright {escape(kind)}">{escape(words)}</li>' for kind, words in dict.fromkeys(entries))
    return f'<ul class="legend">{"".join(items)}</ul>'
