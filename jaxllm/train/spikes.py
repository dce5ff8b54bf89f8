"""What is usual for loss and gradient norm, by robust statistics over the last steps. No jax.

The limit is the median plus a number of median absolute deviations. Both bear that up to half of the window is spikes,
so the window needs no cleaning. The limit at a step is a function of the `window` steps that end `lag` steps before it,
neither more nor fewer, whatever has been judged meanwhile: so the device can be told, and a restart changes nothing.
"""

from collections import deque
from collections.abc import Collection
from statistics import median

from jaxllm.train.config import Spikes

# Deviations are not taken to be smaller than this part of the median: a loss that hardly moves is not judged by its
# last digits.
_LEAST = 0.01

Signal = tuple[str | None, float | None, float | None]


class Baseline:
    """The last steps. One that was not finite has its place among them, and says nothing about what is usual."""

    def __init__(self, spikes: Spikes, lag: int) -> None:
        self._spikes, self._lag = spikes, lag
        self._seen: deque[tuple[int, float | None, float | None]] = deque(maxlen=spikes.window + lag)

    def signal(self, step: int, loss: float, norm: float) -> Signal:
        """(what is too high, its value, the limit that it is above) of a step, or (None, None, None)."""
        if self._spikes.loss_mads is not None and loss > (limit := self._limit(step, 1, self._spikes.loss_mads)):
            return "loss", loss, limit
        if norm > (limit := self.norm_limit(step)):
            return "grad_norm", norm, limit
        return None, None, None

    def add(self, step: int, loss: float | None, norm: float | None) -> None:
        """A step was judged."""
        self._seen.append((step, loss, norm))

    def norm_limit(self, step: int) -> float:
        """The limit of the gradient norm of a step, infinite where there is none yet."""
        mads = self._spikes.norm_mads
        return float("inf") if mads is None else self._limit(step, 2, mads)

    def _limit(self, step: int, column: int, mads: float) -> float:
        last = step - self._lag - 1
        known = [
            value
            for row in self._seen
            if last - self._spikes.window < row[0] <= last and (value := row[column]) is not None
        ]
        return limit_of(known, mads) if len(known) >= self._spikes.min_history else float("inf")


def limit_of(values: Collection[float], mads: float) -> float:
    """Median plus `mads` median absolute deviations."""
    middle = median(values)
    deviation = median(abs(v - middle) for v in values)
    return middle + mads * max(deviation, _LEAST * abs(middle))
