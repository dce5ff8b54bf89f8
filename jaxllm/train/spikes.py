"""What is usual for loss and gradient norm, by robust statistics over the last steps. No jax.

The limit is the median plus a number of median absolute deviations. Both bear that up to half of the window is spikes,
so the window needs no cleaning, and the limit at a step is a function of the records of `window` steps before it.
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
    """The last `window` finite steps, and a few before them: what held `lag` steps ago can still be said."""

    def __init__(self, spikes: Spikes, lag: int) -> None:
        self._spikes = spikes
        self._losses: deque[float] = deque(maxlen=spikes.window)
        self._norms: deque[tuple[int, float]] = deque(maxlen=spikes.window + lag)

    def signal(self, loss: float, norm: float) -> Signal:
        """(what is too high, its value, the limit that it is above), or (None, None, None)."""
        if len(self._losses) < self._spikes.min_history:
            return None, None, None
        for name, value, known, mads in (
            ("loss", loss, self._losses, self._spikes.loss_mads),
            ("grad_norm", norm, self._usual_norms(), self._spikes.norm_mads),
        ):
            if mads is not None and value > (limit := limit_of(known, mads)):
                return name, value, limit
        return None, None, None

    def add(self, step: int, loss: float | None, norm: float | None) -> None:
        """A step was judged. One that was not finite says nothing about what is usual."""
        if loss is not None and norm is not None:
            self._losses.append(loss)
            self._norms.append((step, norm))

    def norm_limit(self, before: int) -> float:
        """The limit of the gradient norm, by the steps before `before`."""
        known = self._usual_norms(before)
        if len(known) < self._spikes.min_history or self._spikes.norm_mads is None:
            return float("inf")
        return limit_of(known, self._spikes.norm_mads)

    def _usual_norms(self, before: int | None = None) -> list[float]:
        known = [norm for step, norm in self._norms if before is None or step < before]
        return known[-self._spikes.window :]


def limit_of(values: Collection[float], mads: float) -> float:
    """Median plus `mads` median absolute deviations."""
    middle = median(values)
    deviation = median(abs(v - middle) for v in values)
    return middle + mads * max(deviation, _LEAST * abs(middle))
