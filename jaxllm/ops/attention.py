"""Grouped-query attention (https://arxiv.org/abs/2305.13245): a reference, and a fast causal kernel in plain XLA.

`attention` is what a model calls for training: causal by index, within segments. `attend` takes any mask (decoding).
Logits and softmax are float32; the products are in the dtype of the arguments.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

Kernel = Literal["reference", "blocks"]
KERNELS: tuple[Kernel, ...] = ("reference", "blocks")

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

# The name (jax.ad_checkpoint) of what the backward pass needs beside q, k and v.
SAVED = "attention"

_MASKED = -1e30  # finite, so that a row that sees nothing gives numbers (a mean of values), not NaN
_MIN_BLOCK, _MAX_BLOCKS = 64, 8  # smaller blocks starve the matrix product, more blocks compile longer for little


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


def choose(kernel: Literal["auto", "reference", "blocks"], platform: str, seq_len: int) -> Kernel:
    """The kernel that 'auto' stands for on `platform` ('cpu', 'gpu', 'tpu') at this length; others are as asked."""
    if kernel != "auto":
        return kernel
    return "blocks" if platform == "cpu" and seq_len >= 2 * _MIN_BLOCK else "reference"


def attention(
    q_BSHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BS: jax.Array,
    *,
    kernel: Kernel,
    scoring: Scoring,
) -> jax.Array:
    """Causal self-attention within segments: position s sees t <= s of the same segment. Returns [B, S, H, K].

    H is a multiple of G; query heads h * R .. h * R + R - 1 share key-value head h. segments_BS: int32, any numbering
    that differs between documents (all zero: only causal). Same result for every kernel up to rounding.
    """
    match kernel:
        case "reference":
            distance_ST = _distance(0, q_BSHK.shape[1])
            visible_BST = _visible(segments_BS, 0, q_BSHK.shape[1], scoring.window)
            return attend(q_BSHK, k_BSGK, v_BSGK, visible_BST, distance_ST, scoring)
        case "blocks":
            return _blocks(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS)
        case _:
            assert_never(kernel)


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
    scores_BGRST = _scored(logits_BGRST, distance_ST, scoring)
    scores_BGRST = jnp.where(visible_BST[:, None, None], scores_BGRST, _MASKED)
    shares_BGRST = jax.nn.softmax(scores_BGRST, axis=-1).astype(v_BTGK.dtype)
    o_BSGRK = jnp.einsum("BGRST,BTGK->BSGRK", shares_BGRST, v_BTGK)
    return checkpoint_name(o_BSGRK.reshape(B, S, H, K), SAVED)


def _scored(products_BGRST: jax.Array, distance_ST: jax.Array, scoring: Scoring) -> jax.Array:
    """Scores from q k, float32."""
    scores_BGRST = products_BGRST / scoring.divisor
    if scoring.softcap is not None:
        scores_BGRST = scoring.softcap * jnp.tanh(scores_BGRST / scoring.softcap)
    if scoring.slopes is not None:
        slopes_GR11 = jnp.asarray(scoring.slopes, jnp.float32).reshape(*products_BGRST.shape[1:3], 1, 1)
        scores_BGRST = scores_BGRST - slopes_GR11 * distance_ST.astype(jnp.float32)
    return scores_BGRST


def _distance(low: int, high: int) -> jax.Array:
    """int32 [high - low, high]."""
    return jnp.asarray(np.arange(low, high, dtype=np.int32)[:, None] - np.arange(high, dtype=np.int32)[None, :])


def _visible(segments_BS: jax.Array, low: int, high: int, window: int | None) -> jax.Array:
    """Which keys t < high the queries low <= s < high see: bool [B, high - low, high]."""
    distance_ST = np.arange(low, high)[:, None] - np.arange(high)[None, :]
    near_ST = distance_ST >= 0 if window is None else (distance_ST >= 0) & (distance_ST < window)
    return jnp.asarray(near_ST) & (segments_BS[:, low:high, None] == segments_BS[:, None, :high])


# ---- blocks ----------------------------------------------------------------------------------------------------------
# Queries in blocks, each against the keys up to its own end: the masked half is never computed. The backward pass is
# written by hand because it keeps one float per query (log of the softmax's sum) where autodiff keeps every share, and
# because of the spelling of dk and dv: XLA's CPU backend is slow on a batched product whose large left side is
# transposed, so the small side goes left and the result is transposed behind a barrier (else it is folded back).


def _bounds(S: int) -> Iterator[tuple[int, int]]:
    block = max(_MIN_BLOCK, -(-S // _MAX_BLOCKS))
    return ((low, min(low + block, S)) for low in range(0, S, block))


def _grouped(x_BSHK: jax.Array, G: int) -> jax.Array:
    B, S, H, K = x_BSHK.shape
    return x_BSHK.reshape(B, S, G, H // G, K).transpose(0, 2, 3, 1, 4)


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
    scores_BGRST = _scored(products_BGRST, _distance(low, high), scoring)
    slope_BGRST = None
    if scoring.softcap is not None:
        slope_BGRST = 1 - jnp.square(jnp.tanh(products_BGRST / scoring.divisor / scoring.softcap))
    visible_BST = _visible(segments_BS, low, high, scoring.window)
    return jnp.where(visible_BST[:, None, None], scores_BGRST, _MASKED), slope_BGRST


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(
    scoring: Scoring, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array
) -> jax.Array:
    return _blocks_forward(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS)[0]


def _blocks_forward(
    scoring: Scoring, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, S, H, K = q_BSHK.shape
    G, dtype = k_BSGK.shape[2], v_BSGK.dtype
    q_BGRSK = _grouped(q_BSHK, G)
    k_BGTK, v_BGTK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
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
    return o_BSHK, (q_BSHK, k_BSGK, v_BSGK, segments_BS, o_BSHK, log_sum_BGRS1)


def _blocks_backward(
    scoring: Scoring, saved: tuple[jax.Array, ...], do_BSHK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BSHK, k_BSGK, v_BSGK, segments_BS, o_BSHK, log_sum_BGRS1 = saved
    B, S, H, K = q_BSHK.shape
    G, dtype = k_BSGK.shape[2], q_BSHK.dtype
    q_BGRSK, do_BGRSK = _grouped(q_BSHK, G), _grouped(do_BSHK, G)
    k_BGTK, v_BGTK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
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
    dk_BGKT, dv_BGKT = jax.lax.optimization_barrier((dk_BGKT, dv_BGKT))
    dk_BTGK, dv_BTGK = (d.transpose(0, 3, 1, 2).astype(dtype) for d in (dk_BGKT, dv_BGKT))
    return _ungrouped(jnp.concatenate(dq_blocks, axis=3)), dk_BTGK, dv_BTGK, None


_blocks.defvjp(_blocks_forward, _blocks_backward)
