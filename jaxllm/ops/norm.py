"""Normalisation of the last axis, in float32."""

import functools

import jax
import jax.numpy as jnp

_Saved = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis; computed in float32, returned in x.dtype.

    x: [..., D]. scale: [D]. https://arxiv.org/abs/1910.07467
    The backward pass is written out so that x is all that is kept for it; autodiff keeps three more arrays as large.
    """
    return _rms_forward(x, scale, eps)[0]


def _rms_forward(x: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, _Saved]:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * inverse * scale.astype(jnp.float32)).astype(x.dtype), (x, scale, inverse)


def _rms_backward(eps: float, saved: _Saved, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale, inverse = saved
    unit = x.astype(jnp.float32) * inverse
    dy = dy.astype(jnp.float32)
    dunit = dy * scale.astype(jnp.float32)
    dx = inverse * (dunit - unit * jnp.mean(dunit * unit, axis=-1, keepdims=True))
    dscale = (dy * unit).sum(axis=tuple(range(x.ndim - 1)))
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def standardized(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """(x - mean(x)) / sqrt(var(x) + eps) * scale over the last axis: LayerNorm without its bias.

    Computed in float32, returned in float32, so that a bias can be added before it is rounded.
    x: [..., D]. scale: [D]. https://arxiv.org/abs/1607.06450. Kept for the backward pass: x and a float per vector.
    """
    return _standardized_forward(x, scale, eps)[0]


def _unit(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return centred * inverse, inverse


def _standardized_forward(x: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    unit, _ = _unit(x, eps)
    return unit * scale.astype(jnp.float32), (x, scale)


def _standardized_backward(
    eps: float, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, scale = saved
    unit, inverse = _unit(x, eps)
    dunit = dy * scale.astype(jnp.float32)
    mean = jnp.mean(dunit, axis=-1, keepdims=True)
    dx = inverse * (dunit - mean - unit * jnp.mean(dunit * unit, axis=-1, keepdims=True))
    dscale = (dy * unit).sum(axis=tuple(range(x.ndim - 1)))
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


standardized.defvjp(_standardized_forward, _standardized_backward)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """LayerNorm over the last axis; computed in float32, returned in x.dtype. x: [..., D]; scale, bias: [D]."""
    y = standardized(x, scale, eps)
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)
