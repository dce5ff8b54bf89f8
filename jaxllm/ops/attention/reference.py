"""Attention spelled out, with all S x T logits at once: what the other kernels are held against, and any mask."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.ops.attention.scoring import MASKED, SAVED, Scoring, distances, scored, visible


def reference(
    scoring: Scoring, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array
) -> jax.Array:
    """As `ops.attention.attention`."""
    S = q_BSHK.shape[1]
    distance_ST, visible_BST = distances(0, S), visible(segments_BS, 0, S, scoring.window)
    return attend(q_BSHK, k_BSGK, v_BSGK, visible_BST, distance_ST, scoring)


def attend(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    visible_BST: jax.Array,
    distance_ST: jax.Array,
    scoring: Scoring,
) -> jax.Array:
    """softmax(scores) v over the keys that `visible_BST` (bool) allows, with all S x T logits at once.

    distance_ST: int32, how far each key lies before each query. The window is the caller's, in `visible_BST`.
    """
    B, S, H, K = q_BSHK.shape
    G = k_BTGK.shape[2]
    q_BSGRK = q_BSHK.reshape(B, S, G, H // G, K)
    logits_BGRST = jnp.einsum("BSGRK,BTGK->BGRST", q_BSGRK, k_BTGK, preferred_element_type=jnp.float32)
    scores_BGRST = scored(logits_BGRST, distance_ST, scoring)
    scores_BGRST = jnp.where(visible_BST[:, None, None], scores_BGRST, MASKED)
    shares_BGRST = jax.nn.softmax(scores_BGRST, axis=-1).astype(v_BTGK.dtype)
    o_BSGRK = jnp.einsum("BGRST,BTGK->BSGRK", shares_BGRST, v_BTGK)
    return checkpoint_name(o_BSGRK.reshape(B, S, H, K), SAVED)
