"""How many of a stage's first x samples come from each source: exact, monotone, and computable for any x at once.

The sources are the leaves of a balanced binary tree. Of y samples that reach a node, its left half takes y * share,
rounded half up, and its right half the rest. Counts then always sum to x and never go backwards, every count is exact
where all the quotas are integers, and none is ever further from its quota than half a sample per level of the tree.
(Differences of floor(x * cumulated share), which look simpler, do go backwards for a source that gives less than one
sample per block.) The tree also runs upwards: the sample at which a source reaches a count is a closed formula.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class _Turn:
    """One level on the way from a leaf to the root: which side the leaf is on, its side's weight and the node's."""

    left: bool
    part: int
    whole: int


class Mixture:
    """`samples` drawn from sources in proportion to `weights` (relative, exact; 0 leaves a source out)."""

    def __init__(self, weights: Sequence[int | Fraction], samples: int) -> None:
        exact = [Fraction(w) for w in weights]
        if any(w < 0 for w in exact) or not any(exact):
            raise ValueError(f"weights {[str(w) for w in exact]}: none negative, at least one positive")
        if samples < 0:
            raise ValueError(f"samples={samples} is not negative")
        self.samples, self._columns = samples, len(exact)
        self._members = [i for i, w in enumerate(exact) if w]
        scale = math.lcm(*(w.denominator for w in exact))
        parts = [int(exact[i] * scale) for i in self._members]
        common = math.gcd(*parts)
        self._cumulated = [0]
        for part in parts:
            self._cumulated.append(self._cumulated[-1] + part // common)
        self._paths: dict[int, list[_Turn]] = {i: [] for i in self._members}
        self._collect_paths(0, len(self._members))
        # Python integers where 64 bits would not hold the products; the results are the same integers.
        self._dtype = np.int64 if 2 * self._cumulated[-1] * (samples + 1) < 2**63 else object

    def taken(self, x: np.ndarray) -> np.ndarray:
        """int64 [N] -> int64 [N, sources]: how many of the first x samples each source gives. 0 <= x <= samples."""
        counts = np.zeros((len(x), self._columns), np.int64)
        self._divide(0, len(self._members), np.asarray(x).astype(self._dtype), counts)
        return counts

    def reached(self, source: int, count: np.ndarray) -> np.ndarray:
        """int64 [N] -> int64 [N]: the smallest x with taken(x)[source] == count, for 1 <= count <= its total."""
        y = np.asarray(count).astype(self._dtype)
        for turn in self._paths[source]:
            need = (2 * y - 1) * turn.whole
            y = -(-need // (2 * turn.part)) if turn.left else need // (2 * (turn.whole - turn.part)) + 1
        return y.astype(np.int64)

    def _divide(self, first: int, last: int, y: np.ndarray, counts: np.ndarray) -> None:
        if last - first == 1:
            counts[:, self._members[first]] = y
            return
        middle, part, whole = self._node(first, last)
        left = (2 * part * y + whole) // (2 * whole)
        self._divide(first, middle, left, counts)
        self._divide(middle, last, y - left, counts)

    def _collect_paths(self, first: int, last: int) -> None:
        if last - first == 1:
            return
        middle, part, whole = self._node(first, last)
        self._collect_paths(first, middle)
        self._collect_paths(middle, last)
        for i in range(first, last):
            self._paths[self._members[i]].append(_Turn(i < middle, part, whole))

    def _node(self, first: int, last: int) -> tuple[int, int, int]:
        middle, c = (first + last) // 2, self._cumulated
        return middle, c[middle] - c[first], c[last] - c[first]
