"""Rotary position embedding (https://arxiv.org/abs/2104.09864), half-split pairs as in LLaMA and Hugging Face."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rotation(NamedTuple):
    """Cosine and sine of every angle, float32 [B, S, 1, K/2]: computed once, used by all layers."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions_BS: jax.Array, head_width: int, theta: float) -> Rotation:
    """Angle i of position p is p * theta^(-2i / head_width), a float32 product of float32 factors.

    positions_BS: int32, restarting with each document where attention does. head_width: even.
    """
    frequencies = np.float32(1.0 / theta ** (np.arange(0, head_width, 2, dtype=np.float64) / head_width))
    angles = positions_BS.astype(jnp.float32)[:, :, None, None] * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x_BSHK: jax.Array, turn: Rotation) -> jax.Array:
    """Turn the pairs (x[i], x[i + K/2]) of every head; computed in float32, returned in x.dtype."""
    first, second = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    turned = [first * turn.cos - second * turn.sin, second * turn.cos + first * turn.sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BSHK.dtype)
