"""The fast causal kernel in plain XLA, for CPUs.

Queries in blocks, each against the keys up to its own end: the masked half is never computed. The backward pass is
written by hand because it keeps one float per query (log of the softmax's sum) where autodiff keeps every share, and
because of the spelling of dk and dv: XLA's CPU backend is slow on a batched product whose large left side is
transposed, so the small side goes left and the result is transposed when it is settled (else it is folded back).

What every block reads is settled first: queries, keys and values by head, as they came out of their positions.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.ops.attention.scoring import MASKED, SAVED, Scoring, distances, scored, visible
from jaxllm.ops.settled import settled

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

_MIN_BLOCK, _MAX_BLOCKS = 128, 8  # smaller blocks starve the matrix product, more blocks compile longer for little


def _bounds(S: int) -> Iterator[tuple[int, int]]:
    block = max(_MIN_BLOCK, -(-S // _MAX_BLOCKS))
    return ((low, min(low + block, S)) for low in range(0, S, block))


def _grouped(x_BSHK: jax.Array, G: int) -> jax.Array:
    B, S, H, K = x_BSHK.shape
    return x_BSHK.reshape(B, S, G, H // G, K).transpose(0, 2, 3, 1, 4)


def _by_head(x_BSGK: jax.Array) -> jax.Array:
    return x_BSGK.transpose(0, 2, 1, 3)


def _ungrouped(x_BGRSK: jax.Array) -> jax.Array:
    B, G, R, S, K = x_BGRSK.shape
    return x_BGRSK.transpose(0, 3, 1, 2, 4).reshape(B, S, G * R, K)


def _rows(x_BGRSC: jax.Array) -> jax.Array:
    """The R query heads of a group one below the other: one tall product per group."""
    B, G, R, S, C = x_BGRSC.shape
    return x_BGRSC.reshape(B, G, R * S, C)


def _scores(
    scoring: Scoring, q_BGRSK: jax.Array, k_BGTK: jax.Array, segments_BS: jax.Array, low: int, high: int
) -> tuple[jax.Array, jax.Array | None]:
    """(scores of the queries low <= s < high, the slope of the softcap there: None without one)."""
    B, G, R = q_BGRSK.shape[:3]
    products_BGMT = _product("BGMK,BGTK->BGMT", _rows(q_BGRSK[:, :, :, low:high]), k_BGTK[:, :, :high])
    products_BGRST = products_BGMT.reshape(B, G, R, high - low, high)
    scores_BGRST = scored(products_BGRST, distances(low, high), scoring)
    slope_BGRST = None
    if scoring.softcap is not None:
        slope_BGRST = 1 - jnp.square(jnp.tanh(products_BGRST / scoring.divisor / scoring.softcap))
    visible_BST = visible(segments_BS, low, high, scoring.window)
    return jnp.where(visible_BST[:, None, None], scores_BGRST, MASKED), slope_BGRST


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocks(
    scoring: Scoring, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array
) -> jax.Array:
    """As `ops.attention.attention`."""
    return _blocks_forward(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS)[0]


def _blocks_forward(
    scoring: Scoring, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, S, H, K = q_BSHK.shape
    G, dtype = k_BSGK.shape[2], v_BSGK.dtype
    q_BGRSK = settled(_grouped(q_BSHK, G))
    k_BGTK, v_BGTK = settled(_by_head(k_BSGK)), settled(_by_head(v_BSGK))
    outs, log_sums = [], []
    for low, high in _bounds(S):
        scores_BGRST, _ = _scores(scoring, q_BGRSK, k_BGTK, segments_BS, low, high)
        top_BGRS1 = scores_BGRST.max(axis=-1, keepdims=True)
        shares_BGRST = jnp.exp(scores_BGRST - top_BGRS1)
        sum_BGRS1 = shares_BGRST.sum(axis=-1, keepdims=True)
        shares_BGMT = _rows(shares_BGRST.astype(dtype))
        o_BGMK = _product("BGMT,BGTK->BGMK", shares_BGMT, v_BGTK[:, :, :high])
        outs.append((o_BGMK.reshape(B, G, H // G, high - low, K) / sum_BGRS1).astype(dtype))
        log_sums.append(top_BGRS1 + jnp.log(sum_BGRS1))
    o_BSHK = checkpoint_name(_ungrouped(jnp.concatenate(outs, axis=3)), SAVED)
    log_sum_BGRS1 = checkpoint_name(jnp.concatenate(log_sums, axis=3), SAVED)
    return o_BSHK, (q_BGRSK, k_BGTK, v_BGTK, segments_BS, o_BSHK, log_sum_BGRS1)


def _blocks_backward(
    scoring: Scoring, saved: tuple[jax.Array, ...], do_BSHK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BGRSK, k_BGTK, v_BGTK, segments_BS, o_BSHK, log_sum_BGRS1 = saved
    B, S, H, K = o_BSHK.shape
    G, dtype = k_BGTK.shape[1], q_BGRSK.dtype
    do_BGRSK = settled(_grouped(do_BSHK, G))
    # The gradient through the softmax subtracts sum_t p_t dp_t, which equals o . do.
    mean_BSH = jnp.einsum("BSHK,BSHK->BSH", o_BSHK.astype(jnp.float32), do_BSHK.astype(jnp.float32))
    mean_BGRS1 = _grouped(mean_BSH[..., None], G)
    dq_blocks = []
    dk_BGKT = dv_BGKT = jnp.zeros((B, G, K, S), jnp.float32)
    for low, high in _bounds(S):
        here = slice(low, high)
        rest = ((0, 0), (0, 0), (0, 0), (0, S - high))
        scores_BGRST, slope_BGRST = _scores(scoring, q_BGRSK, k_BGTK, segments_BS, low, high)
        p_BGRST = jnp.exp(scores_BGRST - log_sum_BGRS1[:, :, :, here])
        do_BGMK = _rows(do_BGRSK[:, :, :, here])
        dp_BGRST = _product("BGMK,BGTK->BGMT", do_BGMK, v_BGTK[:, :, :high]).reshape(p_BGRST.shape)
        ds_BGRST = p_BGRST * (dp_BGRST - mean_BGRS1[:, :, :, here]) / scoring.divisor
        if slope_BGRST is not None:
            ds_BGRST = ds_BGRST * slope_BGRST
        ds_BGMT, p_BGMT = _rows(ds_BGRST.astype(dtype)), _rows(p_BGRST.astype(dtype))
        dq_BGMK = _product("BGMT,BGTK->BGMK", ds_BGMT, k_BGTK[:, :, :high])
        dq_blocks.append(dq_BGMK.reshape(B, G, H // G, high - low, K).astype(dtype))
        dv_BGKT += jnp.pad(_product("BGMK,BGMT->BGKT", do_BGMK, p_BGMT), rest)
        dk_BGKT += jnp.pad(_product("BGMK,BGMT->BGKT", _rows(q_BGRSK[:, :, :, here]), ds_BGMT), rest)
    dk_BTGK, dv_BTGK = (settled(d).transpose(0, 3, 1, 2).astype(dtype) for d in (dk_BGKT, dv_BGKT))
    return _ungrouped(jnp.concatenate(dq_blocks, axis=3)), dk_BTGK, dv_BTGK, None


blocks.defvjp(_blocks_forward, _blocks_backward)
