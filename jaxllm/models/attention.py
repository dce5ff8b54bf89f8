"""The attention part of a layer: projections around a product that the caller supplies."""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
from flax import nnx

from jaxllm.models.config import Alibi, LayerKind, Model
from jaxllm.models.context import Axes, Context, named
from jaxllm.models.declare import Declaration, matrix, param
from jaxllm.models.norm import Norm
from jaxllm.models.position import Place
from jaxllm.ops.attention import Scoring, Wanted, alibi_slopes

T = TypeVar("T")

# (q_BSHK, k_BSGK, v_BSGK) -> (o_BSHK, whatever the caller wants back from this layer): training attends to the same
# sequence, decoding to a cache that it also extends.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, T]]


_HEADS: Axes = ("batch", "seq", "heads", "head")
_KV_HEADS: Axes = ("batch", "seq", "kv_heads", "head")


class Attention(nnx.Module):
    """Grouped-query attention: q [D, H, K], k and v [D, G, K], o [H, K, D], their biases where the config has them."""

    def __init__(self, model: Model) -> None:
        D, part = model.width, model.attention
        H, G, K = part.heads, part.kv_heads, part.head_width
        inner = matrix(model, fan_in=D)
        self.q = param((D, H, K), ("embed", "heads", "head"), inner)
        self.k = param((D, G, K), ("embed", "kv_heads", "head"), inner)
        self.v = param((D, G, K), ("embed", "kv_heads", "head"), inner)
        self.o = param((H, K, D), ("heads", "head", "embed"), matrix(model, fan_in=H * K, residual=True))
        zeros = Declaration(role="bias", init="zeros")
        self.q_bias = param((H, K), ("heads", "head"), zeros) if "q" in part.biases else None
        self.k_bias = param((G, K), ("kv_heads", "head"), zeros) if "k" in part.biases else None
        self.v_bias = param((G, K), ("kv_heads", "head"), zeros) if "v" in part.biases else None
        self.o_bias = param((D,), ("norm",), zeros) if "o" in part.biases else None
        self.q_norm = _qk_norm(model, H, "heads")
        self.k_norm = _qk_norm(model, G, "kv_heads")

    def __call__(self, x_BSD: jax.Array, place: Place, attend: Attend[T], context: Context) -> tuple[jax.Array, T]:
        """x_BSD -> (what is added to the residual stream [B, S, D], what `attend` gave back)."""
        cast, shard, product = context.cast, context.shard, context.product
        q_BSHK = _biased(product("BSD,DHK->BSHK", x_BSD, cast(self.q[...])), self.q_bias, context)
        k_BSGK = _biased(product("BSD,DGK->BSGK", x_BSD, cast(self.k[...])), self.k_bias, context)
        v_BSGK = _biased(product("BSD,DGK->BSGK", x_BSD, cast(self.v[...])), self.v_bias, context)
        if self.q_norm is not None and self.k_norm is not None:
            q_BSHK, k_BSGK = self.q_norm(q_BSHK), self.k_norm(k_BSGK)
        # Before they are turned too: the compiler would else split the halves of a head, and move them twice.
        q_BSHK, k_BSGK = shard(q_BSHK, *_HEADS), shard(k_BSGK, *_KV_HEADS)
        q_BSHK = named(shard(place(q_BSHK), *_HEADS), "qkv")
        k_BSGK = named(shard(place(k_BSGK), *_KV_HEADS), "qkv")
        v_BSGK = named(shard(v_BSGK, *_KV_HEADS), "qkv")
        o_BSHK, kept = attend(q_BSHK, k_BSGK, v_BSGK)
        o_BSHK = shard(o_BSHK, *_HEADS)
        return _biased(product("BSHK,HKD->BSD", o_BSHK, cast(self.o[...])), self.o_bias, context), kept


def _biased(x: jax.Array, bias: nnx.Param[jax.Array] | None, context: Context) -> jax.Array:
    return x if bias is None else x + context.cast(bias[...])


def _qk_norm(model: Model, heads: int, axis: Literal["heads", "kv_heads"]) -> Norm | None:
    K, qk_norm = model.attention.head_width, model.attention.qk_norm
    if qk_norm is None:
        return None
    match qk_norm.over:
        case "head":
            return Norm(model.norm, (K,), ("head",))
        case "width":
            return Norm(model.norm, (heads, K), (axis, "head"))


def scoring_of(model: Model, kind: LayerKind) -> Scoring:
    """How queries of a kind of layer score keys."""
    part = model.attention
    match part.scale:
        case "sqrt":
            divisor = math.sqrt(part.head_width)
        case "linear":
            divisor = float(part.head_width)
        case factor:
            divisor = 1 / factor
    alibi = isinstance(model.position_of(kind), Alibi)
    return Scoring(divisor, part.softcap, kind.window, alibi_slopes(part.heads) if alibi else None)


def wanted_of(model: Model, *, seq_len: int, dtype: Literal["float32", "bfloat16"], documents: bool) -> Wanted:
    """What a model asks of an attention kernel; documents: its attention stays within them."""
    return Wanted(
        seq_len=seq_len,
        head_width=model.attention.head_width,
        dtype=dtype,
        documents=documents,
        windows=any(kind.window is not None for kind in model.pattern),
        softcap=model.attention.softcap is not None,
        alibi=any(isinstance(model.position_of(kind), Alibi) for kind in model.pattern),
    )
