"""Splash attention on TPU: the Pallas kernel that comes with jax, which skips blocks that no query sees."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.ops.attention.scoring import SAVED, Scoring

_LANES, _BLOCK = 128, 512  # a block is a multiple of the lanes of a TPU; larger ones than 512 gain little


def splash(
    scoring: Scoring,
    q_BSHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BS: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """As `ops.attention.attention`, without slopes.

    A length that is no multiple of 128 is padded: keys after the last query are seen by none. Queries are divided in
    float32 and rounded once.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    S, H = q_BSHK.shape[1:3]
    padding = -S % _LANES
    q_BSHK = (q_BSHK.astype(jnp.float32) / scoring.divisor).astype(q_BSHK.dtype)
    q_BHSK, k_BGSK, v_BGSK = (_heads_first(x, padding) for x in (q_BSHK, k_BSGK, v_BSGK))
    segments_BS = jnp.pad(segments_BS, ((0, 0), (0, padding)))
    kernel = _kernel(scoring, S + padding, H, interpret)
    o_BHSK = jax.vmap(kernel)(q_BHSK, k_BGSK, v_BGSK, SegmentIds(segments_BS, segments_BS))
    return o_BHSK.transpose(0, 2, 1, 3)[:, :S]


def _heads_first(x_BSHK: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x_BSHK.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, padding), (0, 0)))


def _kernel(scoring: Scoring, S: int, H: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # half a second, which others need not pay

    window = S if scoring.window is None else scoring.window
    mask = kernels.LocalMask((S, S), (window - 1, 0), offset=0) if window < S else kernels.CausalMask((S, S))
    block = _block(S)
    return kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * H),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=scoring.softcap,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )


def _block(S: int) -> int:
    """The largest multiple of 128 up to 512 that divides S, itself one."""
    return max(n for n in range(_LANES, _BLOCK + 1, _LANES) if S % n == 0)
