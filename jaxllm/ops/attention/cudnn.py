"""Attention by cuDNN on NVIDIA GPUs, as jax.nn offers it.

It could keep documents apart by a mask alone, which jax turns into a bias of S x S numbers per sequence, or by offsets
of packed sequences, which jax does not offer: so it is used where a window is attended to as a whole.
"""

from typing import Any

import jax

from jaxllm.ops.attention.scoring import Scoring


def cudnn(
    scoring: Scoring, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """As `ops.attention.attention` where all positions are of one document, without softcap and slopes, bfloat16.

    interpret: what XLA makes of the same call, in any dtype.
    """
    return jax.nn.dot_product_attention(
        q_BSHK,
        k_BSGK,
        v_BSGK,
        scale=1 / scoring.divisor,
        is_causal=True,
        local_window_size=None if scoring.window is None else (scoring.window - 1, 0),
        implementation="xla" if interpret else "cudnn",
    )


def makes_residuals(primitive: Any) -> bool:
    """Is this equation the forward pass of the kernel? Neither its result nor the rest that its backward pass needs can
    be given a name: remat policies treat all that it gives as `SAVED`."""
    return bool(primitive.name.startswith("dot_product_attention_fwd"))
