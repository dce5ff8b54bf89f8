"""Attention to some of the keys: what a device adds while the keys of a sequence come by in parts.

`forward` gives the result over the keys at hand and the log of the softmax's sum; results over several parts are merged
by these sums (parallel/ring.py). `backward` gives a part's share of the gradients, from the sum over all parts.

Where queries and keys lie in the sequence is data, not shape: two arrays, (index_BS, segments_BS), both int32. A query
sees the keys of its segment whose index is not above its own. All logits of a part may be too many to exist at once:
queries are taken some at a time. Logits, softmax and sums over keys are float32, products in the dtype of arguments.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxllm.ops.attention import Scoring
from jaxllm.ops.attention.scoring import MASKED
from jaxllm.ops.slices import over_slices

Where = tuple[jax.Array, jax.Array]  # index_BS, segments_BS

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

_MOST_LOGITS = 2**24  # at once on a device: 64 MiB in float32
_MIN_SPAN, _MAX_SPANS = 64, 8  # of queries, each with the keys up to its own end, where both are the same positions


def forward(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    here: Where,
    there: Where,
    slopes_H: jax.Array | None,
    *,
    scoring: Scoring,
    own: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(o_BSHK: softmax(scores) v, log_sum_BSH: log of the sum of exp(scores)), float32, over the keys given.

    here, there: where queries and keys lie. slopes_H: float32, the slopes of the query heads at hand, in place of
    those of `scoring`, which has them for all heads. own: the keys are those of the queries' own positions, in rising
    order of index, so that about half of them need not be looked at.
    """
    outs, log_sums = [], []
    for low, high, seen in _spans(q_BSHK.shape[1], k_BTGK.shape[1], own):
        k, v, keys = k_BTGK[:, :seen], v_BTGK[:, :seen], _first(there, seen)

        def rows(
            nothing: None, xs: tuple[jax.Array, ...], k: jax.Array = k, v: jax.Array = v, keys: Where = keys
        ) -> tuple[None, tuple[jax.Array, jax.Array]]:
            q_BSHK, *queries = xs
            return nothing, _forward(q_BSHK, k, v, (queries[0], queries[1]), keys, slopes_H, scoring)

        queries = (q_BSHK[:, low:high], *(x[:, low:high] for x in here))
        _, (o_BSHK, log_sum_BSH) = over_slices(rows, None, queries, _slices(queries[0], seen))
        outs.append(o_BSHK)
        log_sums.append(log_sum_BSH)
    return _joined(outs), _joined(log_sums)


def backward(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    here: Where,
    there: Where,
    slopes_H: jax.Array | None,
    do_BSHK: jax.Array,
    log_sum_BSH: jax.Array,
    mean_BSH: jax.Array,
    *,
    scoring: Scoring,
    own: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq_BSHK, dk_BTGK, dv_BTGK), float32: the share of the keys given.

    do_BSHK: the slope by the result over all keys, log_sum_BSH the log of the sum over all of them; mean_BSH: float32,
    the sum of o * do over K, which equals sum_t p_t dp_t, what the gradient through a softmax subtracts.
    """
    dk_BTGK, dv_BTGK = (jnp.zeros_like(x, jnp.float32) for x in (k_BTGK, v_BTGK))
    dqs = []
    for low, high, seen in _spans(q_BSHK.shape[1], k_BTGK.shape[1], own):
        k, v, keys = k_BTGK[:, :seen], v_BTGK[:, :seen], _first(there, seen)

        def rows(
            totals: tuple[jax.Array, jax.Array],
            xs: tuple[jax.Array, ...],
            k: jax.Array = k,
            v: jax.Array = v,
            keys: Where = keys,
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array]]:
            q_BSHK, do_BSHK, log_sum_BSH, mean_BSH, *queries = xs
            pulled = do_BSHK, log_sum_BSH, mean_BSH
            dq_BSHK, dk_BTGK, dv_BTGK = _backward(
                q_BSHK, k, v, (queries[0], queries[1]), keys, slopes_H, *pulled, scoring
            )
            return (totals[0] + dk_BTGK, totals[1] + dv_BTGK), (dq_BSHK,)

        queries = tuple(x[:, low:high] for x in (q_BSHK, do_BSHK, log_sum_BSH, mean_BSH, *here))
        zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (k, v))
        (dk, dv), (dq_BSHK,) = over_slices(rows, zeros, queries, _slices(queries[0], seen))
        dk_BTGK, dv_BTGK = dk_BTGK.at[:, :seen].add(dk), dv_BTGK.at[:, :seen].add(dv)
        dqs.append(dq_BSHK)
    return _joined(dqs), dk_BTGK, dv_BTGK


def _spans(S: int, T: int, own: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, the one after the last, keys they may see) of each span."""
    size = max(_MIN_SPAN, -(-S // _MAX_SPANS)) if own else S
    return ((low, min(low + size, S), min(low + size, S) if own else T) for low in range(0, S, size))


def _slices(q_BSHK: jax.Array, keys: int) -> int:
    """In how many slices these queries are taken."""
    B, S, H, _ = q_BSHK.shape
    return min(S, -(-B * S * H * keys // _MOST_LOGITS))


def _first(where: Where, seen: int) -> Where:
    return where[0][:, :seen], where[1][:, :seen]


def _joined(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _grouped(x_BSHK: jax.Array, G: int) -> jax.Array:
    B, S, H, K = x_BSHK.shape
    return x_BSHK.reshape(B, S, G, H // G, K)


def _by_group(x_BSH: jax.Array, G: int) -> jax.Array:
    """One number of every query and head, beside the scores [B, G, R, S, T]."""
    B, S, H = x_BSH.shape
    return x_BSH.reshape(B, S, G, H // G, 1).transpose(0, 2, 3, 1, 4)


def _scores(
    q_BSGRK: jax.Array, k_BTGK: jax.Array, here: Where, there: Where, slopes_H: jax.Array | None, scoring: Scoring
) -> tuple[jax.Array, jax.Array | None]:
    """(scores, the slope of the softcap there: None without one)."""
    products_BGRST = _product("BSGRK,BTGK->BGRST", q_BSGRK, k_BTGK)
    scores_BGRST, slope_BGRST = products_BGRST / scoring.divisor, None
    if scoring.softcap is not None:
        bent_BGRST = jnp.tanh(scores_BGRST / scoring.softcap)
        scores_BGRST, slope_BGRST = scoring.softcap * bent_BGRST, 1 - jnp.square(bent_BGRST)
    distance_BST = here[0][:, :, None] - there[0][:, None, :]
    if slopes_H is not None:
        slopes_GR11 = slopes_H.reshape(*q_BSGRK.shape[2:4], 1, 1)
        scores_BGRST = scores_BGRST - slopes_GR11 * distance_BST[:, None, None].astype(jnp.float32)
    visible_BST = (distance_BST >= 0) & (here[1][:, :, None] == there[1][:, None, :])
    if scoring.window is not None:
        visible_BST &= distance_BST < scoring.window
    # A query that sees no key of a part gives numbers for it, which merging multiplies by zero.
    return jnp.where(visible_BST[:, None, None], scores_BGRST, MASKED), slope_BGRST


def _forward(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    here: Where,
    there: Where,
    slopes_H: jax.Array | None,
    scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
    B, S, H, K = q_BSHK.shape
    scores_BGRST, _ = _scores(_grouped(q_BSHK, k_BTGK.shape[2]), k_BTGK, here, there, slopes_H, scoring)
    top_BGRS1 = scores_BGRST.max(axis=-1, keepdims=True)
    shares_BGRST = jnp.exp(scores_BGRST - top_BGRS1)
    sum_BGRS1 = shares_BGRST.sum(axis=-1, keepdims=True)
    o_BGRSK = _product("BGRST,BTGK->BGRSK", shares_BGRST.astype(v_BTGK.dtype), v_BTGK) / sum_BGRS1
    log_sum_BGRS1 = top_BGRS1 + jnp.log(sum_BGRS1)
    o_BSHK = o_BGRSK.transpose(0, 3, 1, 2, 4).reshape(B, S, H, K)
    return o_BSHK, log_sum_BGRS1.transpose(0, 3, 1, 2, 4).reshape(B, S, H)


def _backward(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    here: Where,
    there: Where,
    slopes_H: jax.Array | None,
    do_BSHK: jax.Array,
    log_sum_BSH: jax.Array,
    mean_BSH: jax.Array,
    scoring: Scoring,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    G, dtype = k_BTGK.shape[2], q_BSHK.dtype
    q_BSGRK, do_BSGRK = _grouped(q_BSHK, G), _grouped(do_BSHK, G)
    scores_BGRST, slope_BGRST = _scores(q_BSGRK, k_BTGK, here, there, slopes_H, scoring)
    p_BGRST = jnp.exp(scores_BGRST - _by_group(log_sum_BSH, G))
    dp_BGRST = _product("BSGRK,BTGK->BGRST", do_BSGRK, v_BTGK)
    ds_BGRST = p_BGRST * (dp_BGRST - _by_group(mean_BSH, G)) / scoring.divisor
    if slope_BGRST is not None:
        ds_BGRST = ds_BGRST * slope_BGRST
    ds_BGRST, p_BGRST = ds_BGRST.astype(dtype), p_BGRST.astype(dtype)
    dq_BSGRK = _product("BGRST,BTGK->BSGRK", ds_BGRST, k_BTGK)
    dk_BTGK = _product("BGRST,BSGRK->BTGK", ds_BGRST, q_BSGRK)
    dv_BTGK = _product("BGRST,BSGRK->BTGK", p_BGRST, do_BSGRK)
    return dq_BSGRK.reshape(q_BSHK.shape), dk_BTGK, dv_BTGK
