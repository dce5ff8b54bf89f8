"""The order of a run's samples: a pure integer function of (sources, stages, block, seed), and its inverse.

Sample i lies in a stage, there in a block of `block` samples (the last of a stage may be shorter). A block holds the
number of samples that the stage's mixture owes each source (jaxllm.data.mixture), in an order of its own. The samples
of a source are numbered over the whole run, across stages: number p is in epoch p // windows, and a permutation of the
source and that epoch names the window. So nothing repeats within an epoch, an epoch is complete before
the next begins (but for the shuffle of the block in which they meet), and every step of this reads backwards. No state,
no files, no dependence on hosts or on a library's random numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxllm.core.config import suggest
from jaxllm.core.errors import DataError
from jaxllm.data.config import Data
from jaxllm.data.mixture import Mixture
from jaxllm.data.permutation import Integers, Permutation, key_of

_LOOKUPS_AT_A_TIME = 1 << 14  # (epoch, window) pairs, when looking backwards


@dataclass(frozen=True)
class SourceSpan:
    """A source, and how many windows it is cut into."""

    name: str
    windows: int


@dataclass(frozen=True)
class StageSpan:
    """`samples` drawn from the sources by `weights`: one per source, relative, exact; 0 where it gives nothing."""

    samples: int
    weights: tuple[int | Fraction, ...]


@dataclass(frozen=True)
class Rows:
    """Where samples come from: source int32 [N] (index into Order.sources), epoch int64 [N], window int64 [N]."""

    source: np.ndarray
    epoch: np.ndarray
    window: np.ndarray

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Uses:
    """Where windows of one source went, by sample: sample, epoch and window, all int64 [N]."""

    sample: np.ndarray
    epoch: np.ndarray
    window: np.ndarray


class Order:
    """Sample -> (source, epoch, window) and back, for samples 0..total-1 of all stages together.

    seq_len and windows (the kind, 'shared' or 'disjoint') only enter the keys: another way to cut a source is another
    permutation of it.
    """

    def __init__(
        self,
        sources: Sequence[SourceSpan],
        stages: Sequence[StageSpan],
        *,
        block: int,
        seed: int,
        seq_len: int,
        windows: str,
    ) -> None:
        if block < 1:
            raise ValueError(f"block={block} is at least 1")
        self.sources, self.block, self.seed = tuple(sources), block, seed
        self._cut = (seq_len, windows)
        self._windows = np.array([s.windows for s in self.sources], np.int64)
        self._mixtures = [Mixture(stage.weights, stage.samples) for stage in stages]
        starts, drawn = [0], [np.zeros(len(self.sources), np.int64)]
        for mixture in self._mixtures:
            starts.append(starts[-1] + mixture.samples)
            drawn.append(drawn[-1] + mixture.taken(np.array([mixture.samples]))[0])
        self._starts = np.array(starts, np.int64)  # first sample of each stage, and the total
        self._drawn = np.stack(drawn)  # samples of each source before each stage, and in total
        for source, total in zip(self.sources, self._drawn[-1], strict=True):
            if total and source.windows < 1:
                raise DataError(f"source {source.name!r} has no whole window of seq_len={seq_len} tokens, but is drawn")

    @property
    def total(self) -> int:
        """Samples in all stages."""
        return int(self._starts[-1])

    def drawn(self, source: int) -> int:
        """How many samples source number `source` gives in all stages."""
        return int(self._drawn[-1, source])

    def rows(self, samples: Integers) -> Rows:
        """The rows of any samples, in the order asked. IndexError outside 0..total-1."""
        sample = np.atleast_1d(np.asarray(samples, np.int64))
        if sample.size and not (sample.min() >= 0 and sample.max() < self.total):
            raise IndexError(f"samples {sample.min()} to {sample.max()} do not lie in 0..{self.total - 1}")
        source, number = np.zeros(len(sample), np.int64), np.zeros(len(sample), np.int64)
        stages = np.searchsorted(self._starts, sample, "right") - 1
        for stage in np.unique(stages).tolist():
            here = np.flatnonzero(stages == stage)
            source[here], number[here] = self._numbers(stage, sample[here] - self._starts[stage])
        size = self._windows[source]
        epoch = number // size
        place = number - epoch * size
        code, which = np.unique(epoch * len(self.sources) + source, return_inverse=True)
        key = self._source_keys((code % len(self.sources)).tolist(), (code // len(self.sources)).tolist())
        return Rows(source.astype(np.int32), epoch, Permutation(size, key[which])(place))

    def samples_of(self, source: int, window: int) -> list[tuple[int, int]]:
        """Every (sample, epoch) at which a window of source number `source` is drawn, in the order of the run."""
        uses = self.uses(source, window)
        return list(zip(uses.sample.tolist(), uses.epoch.tolist(), strict=True))

    def uses(self, source: int, windows: Integers) -> Uses:
        """Every time that any of these windows of source number `source` is drawn, in the order of the run."""
        window = np.atleast_1d(np.asarray(windows, np.int64))
        size, total = int(self._windows[source]), self.drawn(source)
        if window.size and not (window.min() >= 0 and window.max() < size):
            wrong = window[(window < 0) | (window >= size)][0]
            raise IndexError(f"source {self.sources[source].name!r} has windows 0..{size - 1}, not {wrong}")
        epochs = -(-total // size) if window.size else 0
        at_a_time = max(1, _LOOKUPS_AT_A_TIME // max(window.size, 1))
        found = [np.zeros((3, 0), np.int64)]
        for first in range(0, epochs, at_a_time):
            some = np.arange(first, min(first + at_a_time, epochs))
            epoch, every_window = np.repeat(some, window.size), np.tile(window, len(some))
            key = np.repeat(self._source_keys([source] * len(some), some.tolist()), window.size)
            number = epoch * size + Permutation(size, key).inverse(every_window)
            drawn = number < total  # the last epoch may end before the window's turn
            samples = self._samples_at(source, number[drawn])
            found.append(np.stack([samples, epoch[drawn], every_window[drawn]]))
        together = np.concatenate(found, axis=1)
        return Uses(*together[:, np.argsort(together[0])])

    def _numbers(self, stage: int, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples of one stage, counted from its start -> source, and number among all samples of that source."""
        block, which = np.unique(local // self.block, return_inverse=True)
        before, edges, size = self._blocks(stage, block)
        offset = local - block[which] * self.block
        place = Permutation(size[which], self._block_keys(stage, block)[which])(offset)
        # One sorted table of all blocks: the upper edges of block i, moved up by i blocks.
        table = (edges[:, 1:] + np.arange(len(block))[:, None] * self.block).reshape(-1)
        source = np.searchsorted(table, which * self.block + place, "right") - which * len(self.sources)
        within = place - edges[which, source]
        return source, self._drawn[stage, source] + before[which, source] + within

    def _samples_at(self, source: int, number: np.ndarray) -> np.ndarray:
        """Numbers among all samples of a source -> samples; the inverse of `_numbers`."""
        sample = np.zeros(len(number), np.int64)
        stages = np.searchsorted(self._drawn[:, source], number, "right") - 1
        for stage in np.unique(stages).tolist():
            here = np.flatnonzero(stages == stage)
            local = number[here] - self._drawn[stage, source]
            block = (self._mixtures[stage].reached(source, local + 1) - 1) // self.block
            before, edges, size = self._blocks(stage, block)
            place = edges[:, source] + local - before[:, source]
            offset = Permutation(size, self._block_keys(stage, block)).inverse(place)
            sample[here] = self._starts[stage] + block * self.block + offset
        return sample

    def _blocks(self, stage: int, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each block: samples of every source before it [B, K], edges of its sources [B, K+1], and its size [B]."""
        mixture = self._mixtures[stage]
        first = block * self.block
        last = np.minimum(first + self.block, mixture.samples)
        before, after = np.split(mixture.taken(np.concatenate([first, last])), 2)
        edges = np.zeros((len(block), len(self.sources) + 1), np.int64)
        np.cumsum(after - before, axis=1, out=edges[:, 1:])
        return before, edges, last - first

    def _block_keys(self, stage: int, block: np.ndarray) -> np.ndarray:
        keys = (key_of(self.seed, "block", stage, b) for b in block.tolist())
        return np.fromiter(keys, np.uint64, len(block))

    def _source_keys(self, sources: Sequence[int], epochs: Sequence[int]) -> np.ndarray:
        pairs = zip(sources, epochs, strict=True)
        keys = (key_of(self.seed, "source", self.sources[k].name, epoch, *self._cut) for k, epoch in pairs)
        return np.fromiter(keys, np.uint64, len(epochs))


def exact_weight(weight: float) -> Fraction:
    """The decimal number that a person wrote: 0.7 is 7/10, not the binary fraction nearest to it."""
    return Fraction(repr(float(weight)))


def build_order(
    data: Data, seed: int, windows_per_source: Mapping[str, int], extra: Sequence[tuple[int, int]] = ()
) -> Order:
    """The order of a run. Sources are numbered by name, so listing the shares of a mixture differently changes nothing.

    extra: (stage, samples) that are drawn once more with the mixture of a stage, behind all stages.
    DataError if a mixture names a source that the store does not have, or one without a single window.
    """
    names = sorted({share.source for stage in data.stages for share in stage.mixture})
    for name in names:
        if name not in windows_per_source:
            raise DataError(f"data.stages: the store has no source {name!r}" + suggest(name, windows_per_source))
    stages = []
    for stage in data.stages:
        weights = {share.source: exact_weight(share.weight) for share in stage.mixture}
        stages.append(StageSpan(stage.steps * stage.batch_size, tuple(weights.get(n, Fraction(0)) for n in names)))
    stages += [StageSpan(samples, stages[stage].weights) for stage, samples in extra]
    sources = [SourceSpan(name, windows_per_source[name]) for name in names]
    return Order(sources, stages, block=data.block, seed=seed, seq_len=data.seq_len, windows=data.windows)
