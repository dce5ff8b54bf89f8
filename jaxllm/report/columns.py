"""Numbers by step, 8 bytes each: a run of a million steps is drawn from a few dozen megabytes."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from jaxllm.report.thin import Point


class Columns:
    """Named numbers by step, in the order of steps."""

    def __init__(self, *names: str) -> None:
        self.step = array("q")
        self._values = {name: array("d") for name in names}

    def __len__(self) -> int:
        return len(self.step)

    def add(self, step: int, values: Iterable[float | None]) -> None:
        """One step more, with a value for every name, in their order; None where it was not finite."""
        self.step.append(step)
        for column, value in zip(self._values.values(), values, strict=True):
            column.append(math.nan if value is None else value)

    def points(self, name: str, first: int | None = None, last: int | None = None) -> list[Point]:
        """The points of a column, from step `first` to step `last`."""
        low = 0 if first is None else bisect_left(self.step, first)
        high = len(self.step) if last is None else bisect_right(self.step, last)
        return [
            Point(step, value if math.isfinite(value) else None)
            for step, value in zip(self.step[low:high], self._values[name][low:high], strict=True)
        ]
