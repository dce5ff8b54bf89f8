"""How queries score keys and which they see: what all kernels share."""

from dataclasses import dataclass
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core.tensors import Tensor

# The name (jax.ad_checkpoint) of what the backward pass needs beside q, k and v.
SAVED: Final[Tensor] = "attention"

MASKED = -1e30  # finite, so that a row that sees nothing gives numbers (a mean of values), not NaN


@dataclass(frozen=True)
class Scoring:
    """How a query scores a key that lies `distance` positions before it.

    logits = q k / divisor, then softcap * tanh(logits / softcap), then - slope * distance with a slope per query head;
    keys at `window` and more are not seen. None leaves a step out.
    """

    divisor: float
    softcap: float | None = None
    window: int | None = None
    slopes: tuple[float, ...] | None = None


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slope of every head (https://arxiv.org/abs/2108.12409): 2^(-8 i / n) for a power of two n, and for another
    number of heads those of the power below it, then every other one of the power above."""
    below = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * i / below) for i in range(1, below + 1)]
    more = [2.0 ** (-4.0 * i / below) for i in range(1, 2 * (heads - below), 2)]
    return (*first, *more)


def scored(products_BGRST: jax.Array, distance_ST: jax.Array, scoring: Scoring) -> jax.Array:
    """Scores from q k, float32."""
    scores_BGRST = products_BGRST / scoring.divisor
    if scoring.softcap is not None:
        scores_BGRST = scoring.softcap * jnp.tanh(scores_BGRST / scoring.softcap)
    if scoring.slopes is not None:
        slopes_GR11 = jnp.asarray(scoring.slopes, jnp.float32).reshape(*products_BGRST.shape[1:3], 1, 1)
        scores_BGRST = scores_BGRST - slopes_GR11 * distance_ST.astype(jnp.float32)
    return scores_BGRST


def distances(low: int, high: int) -> jax.Array:
    """How far the keys t < high lie before the queries low <= s < high: int32 [high - low, high]."""
    return jnp.asarray(np.arange(low, high, dtype=np.int32)[:, None] - np.arange(high, dtype=np.int32)[None, :])


def visible(segments_BS: jax.Array, low: int, high: int, window: int | None) -> jax.Array:
    """Which keys t < high the queries low <= s < high see: bool [B, high - low, high]."""
    distance_ST = np.arange(low, high)[:, None] - np.arange(high)[None, :]
    near_ST = distance_ST >= 0 if window is None else (distance_ST >= 0) & (distance_ST < window)
    return jnp.asarray(near_ST) & (segments_BS[:, low:high, None] == segments_BS[:, None, :high])
