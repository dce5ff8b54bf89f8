"""Normal numbers in integer arithmetic: the same bits on every mesh, every backend and in every program.

The usual way (a uniform number through the inverse error function) rounds as the compiler pleases: where it fuses a
multiplication with an addition, or how it splits an array into vectors, moves last bits, and both depend on how the
array is sharded. Here a quantile is looked up and interpolated as a fixed-point integer. The only floating-point
operation is one multiplication of an exact integer, which rounds one way only.
"""

import functools
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.threefry import words

_POINT = 20  # binary digits behind the point of a quantile; |z| < 8, so quantiles are exact as float32
_CELLS = 256  # per octave of the probability
_OCTAVES = 32
_FRACTION = 15  # binary digits by which a quantile is interpolated within a cell


def normal(key: jax.Array, shape: tuple[int, ...], std: float, cut: float | None = None) -> jax.Array:
    """float32 numbers from N(0, std), from a key of 32-bit words; cut: drawn from within that many std of zero only.

    One 32-bit word a number: the top bit is the sign, the others a probability p in (0, 1/2), of which the place of
    the first one (the octave) and the eight bits after it name a cell of the table. |z| reaches 6.3 where it is not
    cut; its error is below 2e-6 + 3e-6 |z|.
    """
    word = words(key, shape)
    tail = (word << 1) | jnp.uint32(1)  # p = tail / 2^33, the middle of the interval that the word stands for
    octave = jax.lax.clz(tail)
    normed = tail << octave  # its first one is the top bit
    cell = octave * _CELLS + ((normed >> 23) & jnp.uint32(_CELLS - 1))
    fraction = ((normed >> (23 - _FRACTION)) & jnp.uint32((1 << _FRACTION) - 1)).astype(jnp.int32)
    starts, steps = (jnp.asarray(t) for t in _table(cut))
    size = starts[cell] + ((steps[cell] * fraction) >> _FRACTION)
    signed = jnp.where(word >> 31 == 0, size, -size)
    return signed.astype(jnp.float32) * np.float32(std * 2.0**-_POINT)


@functools.cache
def _table(cut: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(|z| at the start of every cell, what it changes by to the end of it), int32 with _POINT binary digits."""
    exact = NormalDist()
    outside = 0.0 if cut is None else exact.cdf(-cut)
    sizes = np.empty((_OCTAVES, _CELLS + 1), np.int64)
    for octave in range(_OCTAVES):
        for cell in range(_CELLS + 1):
            p = 2.0 ** -(octave + 2) * (1 + cell / _CELLS)
            sizes[octave, cell] = round(-exact.inv_cdf(outside + p * (1 - 2 * outside)) * 2**_POINT)
    starts, steps = sizes[:, :-1], np.diff(sizes, axis=1)
    return starts.astype(np.int32).ravel(), steps.astype(np.int32).ravel()
