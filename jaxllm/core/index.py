"""The linear index of an element as two 32-bit halves, on the host and on devices that have no 64-bit integers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_MASK = 0xFFFFFFFF


def linear_index(places: Sequence[Any], shape: Sequence[int], first_index: int = 0) -> tuple[Any, Any | None]:
    """(low, high) 32-bit halves of first_index + the linear index of global coordinates in `shape` (C order).

    places: one uint32 array per dimension, broadcasting together. No 64-bit arithmetic: devices may have none. high is
    None where every index lies below 2^32. numpy or jax arrays.
    """
    wide = first_index + int(np.prod([int(n) for n in shape], dtype=object)) > 1 << 32
    lo = places[0] * np.uint32(0) + np.uint32(first_index & _MASK)
    hi = places[0] * np.uint32(0) + np.uint32(first_index >> 32) if wide else None
    stride = 1
    for place, size in zip(reversed(places), reversed(shape), strict=True):
        if hi is None:
            lo = lo + place * np.uint32(stride & _MASK)
        else:
            step_lo, step_hi = _wide_product(place, stride)
            lo = lo + step_lo
            hi = hi + step_hi + (lo < step_lo).astype(np.uint32)
        stride *= int(size)
    return lo, hi


def _wide_product(x: Any, factor: int) -> tuple[Any, Any]:
    """(low, high) 32-bit halves of x * factor for uint32 x and 0 <= factor < 2^63, the product below 2^64."""
    half, low16 = np.uint32(16), np.uint32(0xFFFF)
    x0, x1 = x & low16, x >> half
    f0, f1, f_high = np.uint32(factor & 0xFFFF), np.uint32(factor >> 16 & 0xFFFF), np.uint32(factor >> 32)
    low, cross_a, cross_b = x0 * f0, x1 * f0, x0 * f1
    middle = (low >> half) + (cross_a & low16) + (cross_b & low16)
    high = x1 * f1 + (cross_a >> half) + (cross_b >> half) + (middle >> half) + x * f_high
    return (low & low16) | (middle << half), high
