"""A product of activations and a kernel in float8: e4m3 forwards, e5m2 for gradients (https://arxiv.org/abs/2209.05433).

Each operand is scaled as a whole by the power of two that brings its largest magnitude, as it is now, just under what
the format holds, and is then rounded to it. Nothing is remembered between steps, so a step stays a function of its
state and its batch. Powers of two only move exponents: what is multiplied is what was rounded, scaling adds no error.

XLA's rewriter of products for NVIDIA GPUs takes a product of float8 operands, each converted to bfloat16 and times a
scalar, as one of cuBLASLt's; elsewhere the same text is computed as it stands, in bfloat16. cuBLASLt shortens the sums
of a product to be fast, which forward passes bear; gradients ask it not to.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_Pair = tuple[jax.Array, jax.Array]

VALUES, GRADIENTS = jnp.float8_e4m3fn, jnp.float8_e5m2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """As `jnp.einsum(spec, x, w)` of bfloat16 operands, which the result and both gradients are too. spec: names every
    axis, none of which occurs once. Where an operand is not finite, all of the result is NaN."""
    return _multiplied(spec, rounded(x, VALUES), rounded(w, VALUES))


def _forward(spec: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, _Pair]:
    return product(spec, x, w), (x, w)


def _backward(spec: str, saved: _Pair, dy: jax.Array) -> _Pair:
    x, w = saved
    of_x, of_w, of_y = spec.replace("->", ",").split(",")
    dy = rounded(dy, GRADIENTS)
    full = jax.lax.Precision.HIGHEST
    return (
        _multiplied(f"{of_y},{of_w}->{of_x}", dy, rounded(w, VALUES), full),
        _multiplied(f"{of_x},{of_y}->{of_w}", rounded(x, VALUES), dy, full),
    )


product.defvjp(_forward, _backward)


def _multiplied(spec: str, a: jax.Array, b: jax.Array, precision: Any = None) -> jax.Array:
    return jnp.einsum(spec, a, b, precision=precision)


def rounded(x: jax.Array, kind: Any) -> jax.Array:
    """`x`, each number replaced by the nearest of those that the format can tell at the scale of `x`; bfloat16."""
    scale, back = scales(jnp.abs(x).max(), kind)
    most = float(jnp.finfo(kind).max)
    small = jnp.clip(x.astype(jnp.float32) * scale, -most, most).astype(kind)
    return small.astype(jnp.bfloat16) * back.astype(jnp.bfloat16)


def scales(largest: jax.Array, kind: Any) -> _Pair:
    """(2^k, 2^-k) in float32, with the largest k for which `largest` times 2^k does not exceed the format's maximum.

    `largest` is a scalar that is not negative; (1, 1) of 0, and (NaN, NaN) of what is not finite, so that it shows.
    """
    mantissa, exponent = jnp.frexp(largest.astype(jnp.float32))
    room, over = jnp.frexp(jnp.float32(jnp.finfo(kind).max))
    k = over - exponent - (mantissa > room)
    # Between the smallest and the largest power of two whose inverse is a normal number too.
    k = jnp.where(largest > 0, jnp.clip(k, -126, 126), 0)
    bad = jnp.where(jnp.isfinite(largest), 0.0, jnp.nan).astype(jnp.float32)
    return _power_of_two(k) + bad, _power_of_two(-k) + bad


def _power_of_two(k: jax.Array) -> jax.Array:
    """Exactly; k lies in -126..127."""
    return jax.lax.bitcast_convert_type((k.astype(jnp.int32) + 127) << 23, jnp.float32)
