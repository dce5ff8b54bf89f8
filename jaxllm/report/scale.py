"""Axes of charts: how high a value lies, and what is written beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["linear", "log", "signed"]


class Scale(Protocol):
    """Values -> 0..1, the bottom of a chart to its top; what lies outside is put on the edge."""

    @property
    def top(self) -> float: ...  # what is above it is marked as such
    def at(self, value: float) -> float: ...
    def ticks(self) -> list[tuple[float, str]]: ...


@dataclass(frozen=True)
class Linear:
    """From low to high. whole: of numbers that count something."""

    low: float
    top: float
    whole: bool = False

    def at(self, value: float) -> float:
        return (min(max(value, self.low), self.top) - self.low) / (self.top - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        return [(t, short(t)) for t in steps_between(self.low, self.top) if not self.whole or t == int(t)]


@dataclass(frozen=True)
class Log:
    """From low to high, both above zero, by their logarithms."""

    low: float
    top: float

    def at(self, value: float) -> float:
        low, top = math.log10(self.low), math.log10(self.top)
        return (math.log10(min(max(value, self.low), self.top)) - low) / (top - low)

    def ticks(self) -> list[tuple[float, str]]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.top)) + 1)
        tens, halves = (
            [t for p in powers for m in few if self.low <= (t := m * 10.0**p) <= self.top] for few in ((1,), (1, 2, 5))
        )
        if len(halves) < 3:  # less than a decade
            return [(tick, short(tick)) for tick in steps_between(self.low, self.top) if tick > 0]
        found = halves if len(halves) <= 6 else tens[:: math.ceil(len(tens) / 6)]
        return [(tick, short(tick)) for tick in found]


@dataclass(frozen=True)
class Signed:
    """Zero on a line of its own, and on both sides of it decades from `least` on: a difference of one unit in the last
    place and one of a thousand times the value are both seen, and neither is taken for equality.

    up, down: decades above and below; a side without values has none.
    """

    least: float
    up: float
    down: float

    @property
    def top(self) -> float:
        return math.inf

    def at(self, value: float) -> float:
        room = 0.3  # beside a line at the edge
        low, high = -self.down - room, self.up + room
        return (min(max(self._place(value), low), high) - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        sides = [(sign, math.floor(extent)) for sign, extent in ((1, self.up), (-1, self.down)) if extent]
        every = max(math.ceil(max((n for _, n in sides), default=1) / 4), 1)
        near = 0.12 * (self.up + self.down)  # too near to the word beside zero
        values = [sign * self.least * 10.0 ** (p - 1) for sign, n in sides for p in range(n, 0, -every) if p > near]
        return [(0.0, "equal"), *((v, f"{v:+.0e}".replace("e-0", "e-").replace("e+0", "e")) for v in values)]

    def _place(self, value: float) -> float:
        if value == 0:
            return 0.0
        return math.copysign(max(math.log10(abs(value) / self.least), 0.0) + 1, value)


def scale_of(kind: Kind, standing: Sequence[float], *, everything: Sequence[float], zero: bool) -> Scale:
    """The axis for some values, at least one; `standing` are those that it is made for.

    What lies far above nearly all others does not stretch a linear axis. A logarithmic one is linear where a value is
    not above zero. zero: a linear axis begins there.
    """
    ordered = sorted(standing)
    low, high = ordered[0], ordered[-1]
    if kind == "signed":
        least = 10.0 ** math.floor(math.log10(min((abs(v) for v in everything if v), default=1e-7)))
        sides = [max((math.log10(s * v / least) + 1 for v in everything if s * v > 0), default=0.0) for s in (1, -1)]
        return Signed(least, *(sides if any(sides) else (1.0, 1.0)))
    if kind == "log" and min(everything) > 0:
        return Log(low * 0.9, high * 1.1)
    body = ordered[min(int(len(ordered) * 0.98), len(ordered) - 1)]
    if len(ordered) >= 10 and high - low > 4 * (body - low) > 0:
        high = low + 1.5 * (body - low)
    if zero:
        low = min(low, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    whole = all(v == int(v) for v in everything)
    return Linear(low if zero and low == 0 else low - room, high + room, whole)


def steps_between(low: float, high: float) -> list[float]:
    """About five round numbers."""
    raw = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def number(value: float | None) -> str:
    """A number as people read it."""
    if value is None:
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def short(value: float) -> str:
    """A number beside an axis, where there is little room."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * power or (abs(value) >= power > 1e3):
            return f"{value / power:.4g}{letter}"
    return number(value)
