"""Numbers by step, 8 bytes each: a run of a million steps is drawn from a few dozen megabytes."""

import math
from array import array
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
        return [
            Point(step, value if math.isfinite(value) else None)
            for step, value in zip(self.step, self._values[name], strict=True)
            if (first is None or step >= first) and (last is None or step <= last)
        ]
