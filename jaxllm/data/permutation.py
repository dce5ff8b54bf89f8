"""A keyed permutation of 0..n-1 that is evaluated pointwise, in both directions, in constant memory.

An alternating Feistel network over the smallest power of two that holds n, with the splitmix64 finaliser as round
function, walked along its cycles until the value falls below n (Black and Rogaway, Ciphers with Arbitrary Finite
Domains, CT-RSA 2002; the finaliser: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA
2014). Integers only, and no generator of a library, so that the order of a run outlives every version of numpy and jax.
The numbers are frozen by tests/data/golden_order.json.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

MAX_SIZE = 1 << 62

_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True)
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_ROUND_STEPS = np.array([(_GOLDEN * (i + 1)) & (2**64 - 1) for i in range(_ROUNDS)], np.uint64)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_ONE = np.uint64(1)
_POWERS = np.array([1 << i for i in range(63)], np.uint64)
_CHUNK = 1 << 14  # values at a time: temporaries stay in the cache

Integers = int | np.integer | range | Sequence[int] | np.ndarray


def key_of(*parts: str | int) -> int:
    """64-bit key of a tuple of strings and integers: BLAKE2b of its JSON text, which no two tuples share."""
    for part in parts:
        if type(part) not in (str, int):
            raise TypeError(f"a key is made of str and int, not {type(part).__name__}: {part!r}")
    return int.from_bytes(
        hashlib.blake2b(_JSON.encode(parts).encode(), digest_size=8, person=b"jaxllm order").digest(), "little"
    )


class Permutation:
    """x -> its image in a pseudorandom order of 0..n-1 that `key` chooses; `inverse` undoes it.

    n (1..2^62) and key (0..2^64-1) are integers, or arrays with one value per element of x: many permutations are then
    evaluated in one call.
    """

    def __init__(self, n: int | np.ndarray, key: int | np.ndarray) -> None:
        self.n = np.asarray(n, np.int64)
        if self.n.size and not (self.n.min() >= 1 and self.n.max() <= MAX_SIZE):
            raise ValueError(f"a permutation has 1 to 2^62 elements, not {self.n.min()} to {self.n.max()}")
        # [rounds, 1 or N]
        self._keys = _mix(np.atleast_1d(np.asarray(key, np.uint64)) + _ROUND_STEPS[:, None])
        self._sizes = np.atleast_1d(self.n).astype(np.uint64)
        bits = np.searchsorted(_POWERS, self._sizes).astype(np.uint64)
        self._low = (bits + _ONE) >> _ONE
        self._high = bits - self._low

    def __call__(self, x: Integers) -> np.ndarray:
        """int64, of the shape of x. IndexError for a value outside 0..n-1."""
        return self._apply(x, forward=True)

    def inverse(self, y: Integers) -> np.ndarray:
        """The x with self(x) == y; int64, of the shape of y. IndexError for a value outside 0..n-1."""
        return self._apply(y, forward=False)

    def _apply(self, x: Integers, forward: bool) -> np.ndarray:
        x = np.asarray(x, np.int64)
        if x.size and not (x.min() >= 0 and (x < self.n).all()):
            raise IndexError(f"values {x.min()} to {x.max()} do not all lie below n = {self.n.min()}")
        value = x.reshape(-1).astype(np.uint64)
        for start in range(0, value.size, _CHUNK):
            self._apply_to(value, slice(start, start + _CHUNK), forward)
        return value.astype(np.int64).reshape(x.shape)

    def _apply_to(self, values: np.ndarray, part: slice, forward: bool) -> None:
        """Replace values[part] by their images."""
        n, low, high, keys = (_at(x, part) for x in (self._sizes, self._low, self._high, self._keys))
        value = _feistel(values[part], low, high, keys, forward)
        # Walk: an image at or above n is fed back in. Half of the domain or more lies below n, so few steps are needed.
        outside = np.flatnonzero(value >= n)
        while outside.size:
            again = _feistel(value[outside], _at(low, outside), _at(high, outside), _at(keys, outside), forward)
            value[outside] = again
            outside = outside[again >= _at(n, outside)]
        values[part] = value


def _at(x: np.ndarray, where: slice | np.ndarray) -> np.ndarray:
    """The parameters of some elements: a selection of x [..., N], or x itself if all elements share it [..., 1]."""
    return x if x.shape[-1] == 1 else x[..., where]


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser, a bijection of uint64 in which every input bit reaches every output bit. In place."""
    x ^= x >> _SHIFTS[0]
    x *= _FACTORS[0]
    x ^= x >> _SHIFTS[1]
    x *= _FACTORS[1]
    x ^= x >> _SHIFTS[2]
    return x


def _feistel(x: np.ndarray, low: np.ndarray, high: np.ndarray, keys: np.ndarray, forward: bool) -> np.ndarray:
    """Rounds that add a mixture of one half to the other by turns; each undoes itself, so backwards is in reverse.

    All uint64 [N]; keys [rounds, N]; low and high are the bits of the two halves. N may be 1 for all but x.
    """
    low_mask, high_mask = (_ONE << low) - _ONE, (_ONE << high) - _ONE
    left, right = x >> low, x & low_mask
    for r in range(_ROUNDS) if forward else reversed(range(_ROUNDS)):
        if r % 2 == 0:
            left ^= _mix(right ^ keys[r]) & high_mask
        else:
            right ^= _mix(left ^ keys[r]) & low_mask
    return (left << low) | right
