"""Normalisation of the last axis, in float32."""

import functools

import jax
import jax.numpy as jnp


# Recomputed from x in the backward pass: three more arrays as large as x would be kept otherwise.
@functools.partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis; computed in float32, returned in x.dtype.

    x: [..., D]. scale: [D]. https://arxiv.org/abs/1910.07467
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * inverse * scale.astype(jnp.float32)).astype(x.dtype)
