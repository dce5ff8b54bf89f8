"""Rotary position embedding (https://arxiv.org/abs/2104.09864) and the ways in which its frequencies are stretched."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.ops.settled import settled

Pairs = Literal["half", "adjacent"]


class Rotation(NamedTuple):
    """Cosine and sine of every angle, float32 [B, S, 1, W/2] where W numbers of a head turn: computed once, used by all
    layers."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions_BS: jax.Array, frequencies: np.ndarray | jax.Array, magnitude: float = 1.0) -> Rotation:
    """Angle i of position p is p * frequencies[i], a float32 product of float32 factors.

    positions_BS: int32, restarting with each document where attention does. frequencies: [W/2], radians per position.
    magnitude: a factor on cosine and sine (YaRN).
    """
    angles = positions_BS.astype(jnp.float32)[:, :, None, None] * frequencies.astype(np.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if magnitude != 1.0:
        cos, sin = cos * magnitude, sin * magnitude
    return Rotation(settled(cos), settled(sin))


def rotate(x_BSHK: jax.Array, turn: Rotation, pairs: Pairs = "half") -> jax.Array:
    """Turn pairs of the first W of the K numbers of every head; computed in float32, returned in x.dtype.

    pairs: (x[i], x[i + W/2]) for 'half', (x[2i], x[2i + 1]) for 'adjacent'.
    """
    W = 2 * turn.cos.shape[-1]
    # A number and its partner lie on an axis of two, which is reversed: on CPU, joining two halves is slow.
    axis, shape = (-2, (2, W // 2)) if pairs == "half" else (-1, (W // 2, 2))
    sign = np.array([-1, 1], np.float32)[:, None] if pairs == "half" else np.array([-1, 1], np.float32)
    both = x_BSHK[..., :W].astype(jnp.float32).reshape(*x_BSHK.shape[:-1], *shape)
    cos, sin = jnp.expand_dims(turn.cos, axis), jnp.expand_dims(turn.sin, axis)
    turned = (both * cos + jnp.flip(both, axis) * (sin * sign)).reshape(*x_BSHK.shape[:-1], W).astype(x_BSHK.dtype)
    return jnp.concatenate([turned, x_BSHK[..., W:]], axis=-1) if x_BSHK.shape[-1] > W else turned


# ---- frequencies: on the host, but for the one that depends on the positions there are -------------------------------
# Float32 arithmetic in the order in which published code computes: at position 30,000 the last bit of a frequency is a
# thousandth of a radian, which logits show. Powers alone are float64, rounded once: the same bits on every platform.


def frequencies(width: int, theta: float) -> np.ndarray:
    """theta^(-2i / width) for i < width / 2, float32. width: even, how many numbers of a head turn."""
    return np.float32(1) / _powers(width, theta)


def _powers(width: int, theta: float) -> np.ndarray:
    """theta^(2i / width), float32."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.asarray((np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32))


def llama3(plain: np.ndarray, *, factor: float, low: float, high: float, original_length: int) -> np.ndarray:
    """Llama 3.1: wavelengths beyond original_length / low are stretched by `factor`, those within original_length /
    high are kept, a linear ramp (in turns per original_length) between."""
    one = np.float32(1)
    waves = np.float32(2 * math.pi) * (one / plain)  # a quotient with a number above is one of 1, there
    keep = (np.float32(original_length) * (one / waves) - np.float32(low)) / np.float32(high - low)
    between = (one - keep) * plain / np.float32(factor) + keep * plain
    stretched = np.where(waves > original_length / low, plain / np.float32(factor), plain)
    return np.where((waves < original_length / high) | (waves > original_length / low), stretched, between)


def yarn(
    width: int, theta: float, *, factor: float, original_length: int, fast: float, slow: float, truncate: bool
) -> np.ndarray:
    """YaRN (https://arxiv.org/abs/2309.00071): frequencies with more than `fast` turns over original_length are kept,
    those with fewer than `slow` are divided by `factor`, a ramp over the index between. truncate: the ramp begins and
    ends at whole indices."""

    def index(turns: float) -> float:
        return width * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    powers, one = _powers(width, theta), np.float32(1)
    ramp = (np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-3))
    keep = one - np.clip(ramp, np.float32(0), one)
    return one / (np.float32(factor) * powers) * (one - keep) + one / powers * keep


def dynamic_ntk(positions_BS: jax.Array, width: int, theta: float, *, factor: float, original_length: int) -> jax.Array:
    """Frequencies, float32, whose theta grows once the largest position lies beyond original_length.

    They are those of the longest sequence there is: with a cache, earlier keys keep theirs, as in Hugging Face.
    """
    length = jnp.maximum(positions_BS.max() + 1, original_length).astype(jnp.float32)
    stretch = factor * length / original_length - (factor - 1)
    plain, exponents = frequencies(width, theta), np.arange(0, width, 2, dtype=np.float64) / (width - 2)
    # theta'^(-2i / width), with theta' = theta * stretch^(width / (width - 2))
    grown = plain * jnp.exp(-exponents.astype(np.float32) * jnp.log(stretch))
    return jnp.where(stretch == 1.0, plain, grown)
