"""The attention part of a layer: projections around a product that the caller supplies."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.config import Model
from jaxllm.models.context import QKV, Context
from jaxllm.models.declare import Declaration, param, residual_std
from jaxllm.models.position import Place

T = TypeVar("T")

# (q_BSHK, k_BSGK, v_BSGK) -> (o_BSHK, whatever the caller wants back from this layer): training attends to the same
# sequence, decoding to a cache that it also extends.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, T]]


class Attention(nnx.Module):
    """Grouped-query attention without biases: q [D, H, K], k and v [D, G, K], o [H, K, D]."""

    def __init__(self, model: Model) -> None:
        D, part = model.width, model.attention
        H, G, K = part.heads, part.kv_heads, part.head_width
        inner = Declaration(role="matrix", std=model.init.std, fan_in=D)
        outer = Declaration(role="matrix", std=residual_std(model), fan_in=H * K)
        self.q = param((D, H, K), ("embed", "heads", "head"), inner)
        self.k = param((D, G, K), ("embed", "kv_heads", "head"), inner)
        self.v = param((D, G, K), ("embed", "kv_heads", "head"), inner)
        self.o = param((H, K, D), ("heads", "head", "embed"), outer)

    def __call__(self, x_BSD: jax.Array, place: Place, attend: Attend[T], context: Context) -> tuple[jax.Array, T]:
        """x_BSD -> (what is added to the residual stream [B, S, D], what `attend` gave back)."""
        cast, shard = context.cast, context.shard
        q_BSHK = place(jnp.einsum("BSD,DHK->BSHK", x_BSD, cast(self.q[...])))
        k_BSGK = place(jnp.einsum("BSD,DGK->BSGK", x_BSD, cast(self.k[...])))
        v_BSGK = jnp.einsum("BSD,DGK->BSGK", x_BSD, cast(self.v[...]))
        q_BSHK = checkpoint_name(shard(q_BSHK, "batch", "seq", "heads", "head"), QKV)
        k_BSGK = checkpoint_name(shard(k_BSGK, "batch", "seq", "kv_heads", "head"), QKV)
        v_BSGK = checkpoint_name(shard(v_BSGK, "batch", "seq", "kv_heads", "head"), QKV)
        o_BSHK, kept = attend(q_BSHK, k_BSGK, v_BSGK)
        o_BSHK = shard(o_BSHK, "batch", "seq", "heads", "head")
        return jnp.einsum("BSHK,HKD->BSD", o_BSHK, cast(self.o[...])), kept
