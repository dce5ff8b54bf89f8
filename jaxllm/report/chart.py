"""Charts as SVG: lines over steps, what was left behind in grey, marks that lead to events. No script is needed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from jaxllm.report.thin import Point, thin

WIDTH, HEIGHT = 720, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 26
Scale = Callable[[float], float]
_COLOURS = 6  # classes c0..c5 of the style


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points by step. left: of a lineage that the run has left. colour: a number, by which lines are told apart."""

    name: str
    points: Sequence[Point]
    left: bool = False
    colour: int = 0
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An upright line at a step; kind is the event's name, href where it leads (an anchor of the page)."""

    step: int
    kind: str
    text: str
    href: str


def number(value: float | None) -> str:
    """A number as people read it."""
    if value is None:
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def chart(
    title: str, lines: Sequence[Line], marks: Sequence[Mark] = (), *, log: bool = False, zero: bool = False
) -> str:
    """An SVG of lines over steps, with a legend if there are several; a sentence if there is no point.

    What lies far above the lines that stand (a spike among thousands of steps) is drawn as a triangle at the upper
    edge, with its value, and what is not finite as a cross.
    """
    shown = [line for line in lines if line.points]
    values = [p.value for line in shown for p in line.points if p.value is not None]
    if not values:
        return f'<p class="none">{escape(title)}: nothing was recorded.</p>'
    log = log and min(values) > 0
    standing = [p.value for line in shown if not line.left for p in line.points if p.value is not None] or values
    low, high = _range(standing, log=log, zero=zero)
    steps = [p.step for line in shown for p in line.points]
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return _LEFT + (step - first) / max(last - first, 1) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        a, b, v = (math.log10(n) for n in (low, high, max(value, low))) if log else (low, high, value)
        return _TOP + (1 - (min(max(v, a), b) - a) / (b - a)) * (HEIGHT - _TOP - _BOTTOM)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in _ticks(low, high, log=log):
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{_short(tick)}</text>')
    for tick in [t for t in _ticks(first, last, log=False) if t == int(t)] or [first]:
        anchor = "end" if x(tick) > WIDTH - 40 else "middle"
        out.append(f'<text class="tick" text-anchor="{anchor}" x="{x(tick):.1f}" y="{HEIGHT - 8}">{int(tick):,}</text>')
    for mark in marks:
        if first <= mark.step <= last:
            at = f'x1="{x(mark.step):.1f}" x2="{x(mark.step):.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"'
            upright = f'<line class="mark {escape(mark.kind)}" {at}><title>{escape(mark.text)}</title></line>'
            out.append(f'<a href="{escape(mark.href)}">{upright}</a>')
    for line in sorted(shown, key=lambda line: not line.left):
        out += _drawn(line, x, y, high)
    out.append("</svg>")
    named = [line for line in shown if line.name]
    if len(named) > 1:
        keys = (f'<li class="{_class(line)}">{escape(line.name)}</li>' for line in named)
        out.append(f'<ul class="legend">{"".join(dict.fromkeys(keys))}</ul>')
    scale = " (logarithmic)" if log else ""
    return f"<figure><figcaption>{escape(title)}{scale}</figcaption>{''.join(out)}</figure>"


def _drawn(line: Line, x: Scale, y: Scale, high: float) -> list[str]:
    points, out = thin(line.points), []
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
        if p.value > high:
            a = x(p.step)
            out.append(f'<path class="odd" d="M{a - 5:.1f} {_TOP + 8}h10l-5 -8z">{text}</path>')
        elif line.dots or len(points) <= 100:
            place = f'cx="{x(p.step):.1f}" cy="{y(p.value):.1f}"'
            out.append(f'<circle class="{_class(line)}" r="{3 if line.dots else 2}" {place}>{text}</circle>')
    lines = [f'<polyline class="{_class(line)}" points="{" ".join(r)}"/>' for r in [*pieces, run] if len(r) > 1]
    return [*lines, *out]


def _short(value: float) -> str:
    """A number beside an axis, where there is little room."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * power or (abs(value) >= power > 1e3):
            return f"{value / power:.4g}{letter}"
    return number(value)


def _class(line: Line) -> str:
    return "left" if line.left else f"c{line.colour % _COLOURS}"


def _range(values: Sequence[float], *, log: bool, zero: bool) -> tuple[float, float]:
    """What the axis spans: all values, but for those far above nearly all others."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    body = ordered[min(int(len(ordered) * 0.98), len(ordered) - 1)]
    if not log and len(ordered) >= 10 and high - low > 4 * (body - low) > 0:
        high = low + 1.5 * (body - low)
    if log:
        return (low * 0.9, high * 1.1)
    if zero:
        low = min(low, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (low if zero and low == 0 else low - room, high + room)


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        few = (1, 2, 5) if len(powers) <= 3 else (1,)
        return [m * 10.0**p for p in powers for m in few if low <= m * 10.0**p <= high]
    raw = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]
