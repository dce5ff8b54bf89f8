"""Fewer points for a drawing, with every extreme kept: a spike of one step among a million stays visible."""

from collections.abc import Sequence
from typing import NamedTuple

BUCKETS = 1000  # about a pixel each; at most two points of every bucket are drawn


class Point(NamedTuple):
    """A value at a step; None where it was not finite."""

    step: int
    value: float | None


def thin(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """At most two points of every one of `buckets` equal spans of steps: the least and the greatest, in their order;
    and every one that is not finite, the first and the last."""
    if len(points) <= 2 * buckets:
        return list(points)
    first, width = points[0].step, max(points[-1].step - points[0].step + 1, 1)
    kept = {0, len(points) - 1}
    low: dict[int, int] = {}
    high: dict[int, int] = {}
    for i, point in enumerate(points):
        if point.value is None:
            kept.add(i)
            continue
        bucket = (point.step - first) * buckets // width
        if bucket not in low:
            low[bucket] = high[bucket] = i
            continue
        if point.value < (points[low[bucket]].value or 0.0):
            low[bucket] = i
        if point.value > (points[high[bucket]].value or 0.0):
            high[bucket] = i
    return [points[i] for i in sorted(kept | set(low.values()) | set(high.values()))]
