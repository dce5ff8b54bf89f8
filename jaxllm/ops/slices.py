"""A function of positions, computed for a slice of them at a time: what it takes in between never exists at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Arrays = tuple[jax.Array, ...]


def over_slices(
    fn: Callable[[Any, Arrays], tuple[Any, Arrays]],
    carry: Any,
    arrays: Arrays,
    chunks: int,
    *,
    parts: int = 1,
) -> tuple[Any, Arrays]:
    """Scan `fn` over `chunks` slices of axis 1 of `arrays`; its outputs are joined along axis 1 again.

    The last slice is shorter where the length does not divide. Slices of the sequence and not of batch x sequence, so
    that the sharding of the batch stays as it is. parts: axis 1 lies in so many equal parts on several devices; each
    slice then takes its share of every part, so that none crosses from one device to another.
    """
    if parts == 1:
        return _over_slices(fn, carry, arrays, chunks, axis=1)

    def apart(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], parts, x.shape[1] // parts, *x.shape[2:])

    def together(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], parts * x.shape[2], *x.shape[3:])

    def shares(carry: Any, xs: Arrays) -> tuple[Any, Arrays]:
        carry, ys = fn(carry, tuple(together(x) for x in xs))
        return carry, tuple(apart(y) for y in ys)

    carry, joined = _over_slices(shares, carry, tuple(apart(x) for x in arrays), chunks, axis=2)
    return carry, tuple(together(y) for y in joined)


def _over_slices(
    fn: Callable[[Any, Arrays], tuple[Any, Arrays]], carry: Any, arrays: Arrays, chunks: int, axis: int
) -> tuple[Any, Arrays]:
    S = arrays[0].shape[axis]
    size = -(-S // chunks)
    whole, rest = divmod(S, size)

    def body(carry: Any, i: jax.Array) -> tuple[Any, Arrays]:
        return fn(carry, tuple(jax.lax.dynamic_slice_in_dim(a, i * size, size, axis=axis) for a in arrays))

    carry, stacked = jax.lax.scan(body, carry, jnp.arange(whole))
    joined = tuple(_joined(y, axis) for y in stacked)
    if rest:
        carry, last = fn(carry, tuple(jax.lax.slice_in_dim(a, whole * size, S, axis=axis) for a in arrays))
        joined = tuple(jnp.concatenate(pair, axis=axis) for pair in zip(joined, last, strict=True))
    return carry, joined


def _joined(y: jax.Array, axis: int) -> jax.Array:
    """What a scan has stacked along axis 0, one after the other along `axis`."""
    y = jnp.moveaxis(y, 0, axis)
    return y.reshape(*y.shape[:axis], y.shape[axis] * y.shape[axis + 1], *y.shape[axis + 2 :])
