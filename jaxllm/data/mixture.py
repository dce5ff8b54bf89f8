"""How many of a stage's first x samples come from each source: exact, monotone, and computable for any x at once.

The sources are the leaves of a balanced binary tree. Of y samples that reach a node, its left half takes y * share,
rounded half up, and its right half the rest. Counts then always sum to x and never go backwards, every count is exact
where all the quotas are integers, and none is ever further from its quota than half a sample per level of the tree.
(Differences of floor(x * cumulated share), which look simpler, do go backwards for a source that gives less than one
sample per block.) The tree also runs upwards: the sample at which a source reaches a count is a closed formula.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class _Turn:
    """A level on the way from a leaf to the root: which side the leaf is on, weights of the left side and the node."""

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
        cumulated = [0, *itertools.accumulate(part // common for part in parts)]
        # Python integers where 64 bits would not hold the products; the results are the same integers.
        self._dtype = np.int64 if 2 * cumulated[-1] * (samples + 1) < 2**63 else object
        self._grow(cumulated)

    def taken(self, x: np.ndarray) -> np.ndarray:
        """int64 [N] -> int64 [N, sources]: how many of the first x samples each source gives. 0 <= x <= samples."""
        reaching = np.asarray(x).astype(self._dtype)[:, None]  # samples that reach each node of a level
        for part, whole in self._levels:
            left = (2 * part * reaching + whole) // (2 * whole)
            reaching = np.stack([left, reaching - left], axis=2).reshape(len(reaching), -1)
        counts = np.zeros((len(reaching), self._columns), np.int64)
        counts[:, self._members] = reaching[:, self._leaves]
        return counts

    def reached(self, source: int, count: np.ndarray) -> np.ndarray:
        """int64 [N] -> int64 [N]: the smallest x with taken(x)[source] == count, for 1 <= count <= its total."""
        y = np.asarray(count).astype(self._dtype)
        for turn in self._paths[source]:
            need = (2 * y - 1) * turn.whole
            y = -(-need // (2 * turn.part)) if turn.left else need // (2 * (turn.whole - turn.part)) + 1
        return y.astype(np.int64)

    def _grow(self, cumulated: list[int]) -> None:
        """The tree by levels, from the root. A node is a range of members; a leaf goes on as its own left child."""
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []
        self._paths: dict[int, list[_Turn]] = {i: [] for i in self._members}
        nodes = [(0, len(self._members))]
        while any(last - first > 1 for first, last in nodes):
            parts, wholes, children = [], [], []
            for first, last in nodes:
                middle = (first + last) // 2 if last - first > 1 else last
                part, whole = (cumulated[i] - cumulated[first] for i in (middle, last))
                for i in range(first, last) if last - first > 1 else ():
                    self._paths[self._members[i]].insert(0, _Turn(i < middle, part, whole))
                parts.append(part if whole else 1)
                wholes.append(whole or 1)
                children += [(first, middle), (middle, last)]
            self._levels.append((np.array(parts, self._dtype), np.array(wholes, self._dtype)))
            nodes = children
        self._leaves = [slot for slot, (first, last) in enumerate(nodes) if first < last]
