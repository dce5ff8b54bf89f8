"""Digests that are sums: 32-bit mixing of (bit pattern, global index), two lanes, added modulo 2^32.

A sum does not care in which order, on which device or on which host its terms are computed, so the digest of an array
is the same under every sharding, and the digest of a batch is the sum of what its processes contribute. The finaliser
is MurmurHash3's (public domain, Appleby). It guards against accident (a flipped bit, a swap, a lost shard), not against
intent: releases carry sha256.

`element_lanes` uses plain operators on uint32 arrays, so that parallel/digest.py computes the very same numbers on
devices. No jax here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

LANES = 2
FLAGS_SALT = 0x6A09E667  # sets flags apart from tokens at the same index

_CHUNK = 1 << 16  # elements at a time: temporaries stay in the cache
_MASK = 0xFFFFFFFF
_INDEX_FACTOR, _INDEX_TERM = np.uint32(0x9E3779B1), np.uint32(0x7F4A7C15)
_WORD_FACTOR = np.uint32(0x2545F491)
_LANE_TERM = (0x165667B1, 0x43033713)
# The high half of the index moves the two lanes by different odd steps that differ by 2 mod 4: two indices below 2^63
# that collide in one lane never collide in the other.
_HIGH_FACTOR = (np.uint32(0x27D4EB2F), np.uint32(0xC2B2AE3D))

Lanes = tuple[int, int]


def finalise(h: Any) -> Any:
    """MurmurHash3's 32-bit finaliser, a bijection of uint32, elementwise. numpy or jax array."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def element_lanes(words: Sequence[Any], index_lo: Any, index_hi: Any | None = None, salt: int = 0) -> tuple[Any, Any]:
    """The two terms of every element, uint32, before they are summed. numpy or jax arrays (not numpy scalars).

    words: the bit pattern of an element as uint32 words of one shape. index_lo, index_hi: halves of the element's
    linear index in the global array, of that shape or broadcast to it; index_hi None is 0.
    """
    place = finalise(index_lo * _INDEX_FACTOR + _INDEX_TERM)
    lanes = []
    for term, factor in zip(_LANE_TERM, _HIGH_FACTOR, strict=True):
        h = place + np.uint32((term + salt) & _MASK)
        if index_hi is not None:
            h = h + index_hi * factor
        for word in words:
            h = finalise(h ^ word) * _WORD_FACTOR + h
        lanes.append(h)
    return lanes[0], lanes[1]


def mix_words(
    words: Sequence[np.ndarray], index_lo: np.ndarray, index_hi: np.ndarray | None = None, salt: int = 0
) -> np.ndarray:
    """Sum of `element_lanes` over all elements: uint32 [2]."""
    lanes = element_lanes(words, index_lo, index_hi, salt)
    return np.array([lane.sum(dtype=np.uint32) for lane in lanes], np.uint32)


def bits_dtype(dtype: np.dtype) -> np.dtype:
    """The unsigned type in which an element's bits are read. TypeError where an element is not 1, 2 or 4 bytes."""
    sizes = {1: np.uint8, 2: np.uint16, 4: np.uint32}
    if dtype.itemsize not in sizes or dtype.kind in "cOSU":
        raise TypeError(f"no digest of {dtype}: elements of 1, 2 or 4 bytes (float32, bfloat16, int32, bool, ...)")
    return np.dtype(sizes[dtype.itemsize])


def array_lanes(x: np.ndarray, first_index: int = 0, salt: int = 0) -> Lanes:
    """Lane sums of an array in logical (C) order whose first element has the global linear index `first_index`."""
    bits = np.ascontiguousarray(x).reshape(-1).view(bits_dtype(x.dtype))
    total = np.zeros(LANES, np.uint32)
    for start, stop in _aligned_spans(first_index, first_index + bits.size):
        word = bits[start - first_index : stop - first_index].astype(np.uint32)
        lo = np.arange(start & _MASK, (start & _MASK) + stop - start, dtype=np.uint32)
        hi = np.full(1, start >> 32, np.uint32) if start >> 32 else None
        total += mix_words([word], lo, hi, salt)
    return int(total[0]), int(total[1])


def array_digest(x: np.ndarray) -> str:
    """Digest of a whole array: 16 hex digits. Shape, type and name are not in it (`combine` adds them)."""
    return hex_lanes(array_lanes(np.asarray(x)))


def tree_digest(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """`array_digest` of every array, by path."""
    return {path: array_digest(x) for path, x in arrays.items()}


def combine(digests: Mapping[str, str], shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]) -> str:
    """The state digest: sha256 (hex) over one line `path digest dtype [shape]` per array, sorted by path.

    ValueError if the three do not name the same arrays, or a path holds white space.
    """
    if not digests.keys() == shapes.keys() == dtypes.keys():
        odd = sorted(set(digests) ^ set(shapes) | set(digests) ^ set(dtypes))
        raise ValueError(f"digests, shapes and dtypes name different arrays: {', '.join(odd)}")
    lines = []
    for path in sorted(digests):
        if path.split() != [path]:
            raise ValueError(f"path {path!r} holds white space or is empty")
        shape = ",".join(str(int(n)) for n in shapes[path])
        lines.append(f"{path} {digests[path]} {dtypes[path]} [{shape}]\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def batch_digest(tokens: np.ndarray, flags: np.ndarray, first_row: int) -> Lanes:
    """Lane sums of some rows of a global batch; those of all processes add (`add_lanes`) to the whole batch's.

    tokens [rows, S+1 or S] and flags [rows, S] (segment << 1 | loss_mask) are non-negative integers below 2^32.
    first_row: index of the first of these rows in the global batch.
    """
    if tokens.ndim != 2 or flags.ndim != 2 or tokens.shape[0] != flags.shape[0]:
        raise ValueError(f"tokens {tokens.shape} and flags {flags.shape} are matrices with the same rows")
    return add_lanes(
        array_lanes(tokens.astype(np.uint32, copy=False), first_row * tokens.shape[1]),
        array_lanes(flags.astype(np.uint32, copy=False), first_row * flags.shape[1], FLAGS_SALT),
    )


def add_lanes(*parts: Lanes) -> Lanes:
    """Sum of lanes modulo 2^32."""
    return sum(p[0] for p in parts) & _MASK, sum(p[1] for p in parts) & _MASK


def hex_lanes(lanes: Sequence[Any]) -> str:
    """Two lanes as 16 hex digits, lane 0 first."""
    return f"{int(lanes[0]):08x}{int(lanes[1]):08x}"


def _aligned_spans(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in pieces that end at multiples of _CHUNK, so that none crosses a multiple of 2^32."""
    while start < stop:
        end = min(stop, (start // _CHUNK + 1) * _CHUNK)
        yield start, end
        start = end
