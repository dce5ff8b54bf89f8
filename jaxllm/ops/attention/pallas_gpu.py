"""Flash attention on GPUs that keeps documents apart: the Pallas kernel that comes with jax, by way of Triton."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.ops.attention.scoring import SAVED, Scoring

# A block of keys or queries takes up to this many bytes: several lie in the shared memory of a multiprocessor at once
# (A100, H100; compiled for the latter). Triton multiplies nothing smaller than 16 x 16.
_BLOCK_BYTES, _LEAST, _MOST, _MOST_BACKWARD = 32 * 1024, 16, 128, 64

_Saved = tuple[jax.Array, ...]


def pallas_gpu(
    scoring: Scoring,
    q_BSHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BS: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """As `ops.attention.attention`, without softcap, window and slopes.

    Keys and values are repeated for the query heads that share them. A length that is no multiple of a block is padded:
    keys after the last query are seen by none.
    """
    S, H, K = q_BSHK.shape[1:]
    block = _block(S, K, q_BSHK.dtype.itemsize)
    padding = -S % block
    k_BSHK, v_BSHK = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BSGK, v_BSGK))
    q_BSHK, k_BSHK, v_BSHK = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BSHK, k_BSHK, v_BSHK))
    segments_BS = jnp.pad(segments_BS, ((0, 0), (0, padding)))
    return _padded(1 / scoring.divisor, block, interpret, q_BSHK, k_BSHK, v_BSHK, segments_BS)[:, :S]


def _block(S: int, K: int, itemsize: int) -> int:
    """Positions per block, a power of two."""
    fits = _BLOCK_BYTES // (_power_of_two(K) * itemsize)
    return max(_LEAST, min(_MOST, fits, _power_of_two(S)))


def _power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


# jax's kernel has a gradient, but gives no name to what its backward pass needs, so that no policy could keep it.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _padded(
    scale: float,
    block: int,
    interpret: bool,
    q_BSHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    segments_BS: jax.Array,
) -> jax.Array:
    return _forward(scale, block, interpret, q_BSHK, k_BSHK, v_BSHK, segments_BS)[0]


def _forward(
    scale: float,
    block: int,
    interpret: bool,
    q_BSHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    segments_BS: jax.Array,
) -> tuple[jax.Array, _Saved]:
    kernels, options = _kernels(scale, block, interpret)
    o_BSHK, log_sum_BHS = kernels.mha(q_BSHK, k_BSHK, v_BSHK, segments_BS, **options, return_residuals=True)
    o_BSHK, log_sum_BHS = checkpoint_name(o_BSHK, SAVED), checkpoint_name(log_sum_BHS, SAVED)
    return o_BSHK, (q_BSHK, k_BSHK, v_BSHK, segments_BS, o_BSHK, log_sum_BHS)


def _backward(
    scale: float, block: int, interpret: bool, saved: _Saved, do_BSHK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    kernels, options = _kernels(scale, block, interpret)
    unused = {"backward_pass_impl": "triton", "num_warps": None, "num_stages": 2, "grid": None, "debug": False}
    return kernels.mha.bwd(**options, **unused, return_residuals=False, res=saved, do=do_BSHK)


def _kernels(scale: float, block: int, interpret: bool) -> tuple[Any, dict[str, Any]]:
    from jax.experimental.pallas.ops.gpu import attention as kernels  # jax 0.12 says that it is deprecated

    backward = min(block, _MOST_BACKWARD)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_k=block,
        block_q_dkv=backward,
        block_kv_dkv=backward,
        block_q_dq=backward,
        block_kv_dq=backward,
    )
    return kernels, {"sm_scale": scale, "causal": True, "block_sizes": sizes, "interpret": interpret}


_padded.defvjp(_forward, _backward)
