"""Where a process's time goes: the phases of a run, and the speed of its steps."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall seconds by phase. Phases do not nest; time outside of any is 'other'."""

    def __init__(self) -> None:
        self._born = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def total(self) -> float:
        """Seconds since this clock was made."""
        return time.perf_counter() - self._born


class Pace:
    """Speed over the last `window` steps. A step that compiles is left out.

    stepping: wall seconds of all steps; again: of those among them that only caught up with a killed process.
    """

    def __init__(self, window: int = 20) -> None:
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=window + 1)
        self.stepping = 0.0
        self.again = 0.0

    def mark(self, tokens: int, waiting: float, *, again: bool = False, at: float | None = None) -> None:
        """A step was finished: its tokens, the seconds since the last mark that were spent waiting for data, and
        whether an earlier process had executed it already. at: when, by time.perf_counter; None is now."""
        at = time.perf_counter() if at is None else at
        if self._marks:
            self.stepping += at - self._marks[-1][0]
            self.again += (at - self._marks[-1][0]) * again
        self._marks.append((at, tokens, waiting))

    def forget(self) -> None:
        """Something other than steps took time (an evaluation, a save, a compilation): do not count it."""
        self._marks.clear()

    @property
    def seconds_per_step(self) -> float | None:
        """Mean wall seconds of a step in the window; None before two marks."""
        if len(self._marks) < 2:
            return None
        return (self._marks[-1][0] - self._marks[0][0]) / (len(self._marks) - 1)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of the window over its wall seconds."""
        if len(self._marks) < 2:
            return None
        return sum(m[1] for m in list(self._marks)[1:]) / (self._marks[-1][0] - self._marks[0][0])

    @property
    def waiting_share(self) -> float:
        """The part of the window's time that was spent waiting for data."""
        if len(self._marks) < 2:
            return 0.0
        return sum(m[2] for m in list(self._marks)[1:]) / (self._marks[-1][0] - self._marks[0][0])
