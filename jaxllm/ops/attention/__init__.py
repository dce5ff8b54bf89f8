"""Grouped-query attention (https://arxiv.org/abs/2305.13245): a reference, and fast kernels by name.

`attention` is what a model calls for training: causal by index, within segments. `attend` takes any mask (decoding).
Logits and softmax are float32; the products are in the dtype of the arguments. `choose` says which kernel can do what a
run wants on a platform (choice.py has the table).
"""

from typing import Final, assert_never, get_args

import jax

from jaxllm.ops.attention.blocks import blocks
from jaxllm.ops.attention.choice import ABILITIES, Choice, Wanted, choose
from jaxllm.ops.attention.cudnn import cudnn, makes_residuals
from jaxllm.ops.attention.pallas_gpu import pallas_gpu
from jaxllm.ops.attention.reference import attend, reference
from jaxllm.ops.attention.scoring import SAVED, Scoring, alibi_slopes
from jaxllm.ops.attention.splash import splash
from jaxllm.parallel.config import Kernel

KERNELS: Final[tuple[Kernel, ...]] = get_args(Kernel)

__all__ = [
    "ABILITIES",
    "KERNELS",
    "SAVED",
    "Choice",
    "Kernel",
    "Scoring",
    "Wanted",
    "alibi_slopes",
    "attend",
    "attention",
    "choose",
    "makes_residuals",
]


def attention(
    q_BSHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BS: jax.Array,
    *,
    kernel: Kernel,
    scoring: Scoring,
    interpret: bool = False,
) -> jax.Array:
    """Causal self-attention within segments: position s sees t <= s of the same segment. Returns [B, S, H, K].

    H is a multiple of G; query heads h * R .. h * R + R - 1 share key-value head h. segments_BS: int32, any numbering
    that differs between documents (all zero: only causal). Same result up to rounding for every kernel that can do what
    is asked of it, which `choose` has found out. interpret: kernels for other hardware are imitated on this one.
    """
    match kernel:
        case "reference":
            return reference(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS)
        case "blocks":
            return blocks(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS)
        case "splash":
            return splash(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS, interpret=interpret)
        case "cudnn":
            return cudnn(scoring, q_BSHK, k_BSGK, v_BSGK, interpret=interpret)
        case "pallas_gpu":
            return pallas_gpu(scoring, q_BSHK, k_BSGK, v_BSGK, segments_BS, interpret=interpret)
        case _:
            assert_never(kernel)
