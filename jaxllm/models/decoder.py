"""The one decoder that assembles the parts."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.attention import Attend, Attention
from jaxllm.models.config import Model
from jaxllm.models.context import Context, rematerialized
from jaxllm.models.declare import Declaration, Params, param, stack
from jaxllm.models.mlp import Mlp
from jaxllm.models.norm import Norm
from jaxllm.models.position import Place, placer
from jaxllm.ops.attention import attention

Tree = Any
T = TypeVar("T")
X = TypeVar("X")

__all__ = ["Context", "Decoder", "build", "describe"]


class Embedding(nnx.Module):
    """table [V, D]: a row per token; also the head, transposed, where embeddings are tied."""

    def __init__(self, model: Model) -> None:
        shape, declaration = (model.vocab_size, model.width), Declaration(role="embedding", std=model.init.std)
        self.table = param(shape, ("vocab", "embed"), declaration)

    def __call__(self, tokens_BS: jax.Array, context: Context) -> jax.Array:
        """Tokens -> x_BSD in the compute type; an id outside the vocabulary becomes NaN."""
        # Cast after the look-up: the gradient of a row sums one term per occurrence, and does so in float32.
        table_VD = context.shard(self.table[...], "vocab", "embed")
        return context.cast(jnp.take(table_VD, tokens_BS, axis=0, mode="fill"))


class Head(nnx.Module):
    """kernel [D, V]: residual stream to logits."""

    def __init__(self, model: Model) -> None:
        D, V = model.width, model.vocab_size
        self.kernel = param((D, V), ("embed", "vocab"), Declaration(role="head", std=model.init.std, fan_in=D))


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm, each added to the residual stream."""

    def __init__(self, model: Model) -> None:
        self.attention_norm = Norm(model.norm, model.width)
        self.attention = Attention(model)
        self.mlp_norm = Norm(model.norm, model.width)
        self.mlp = Mlp(model)

    def __call__(self, x_BSD: jax.Array, place: Place, attend: Attend[T], context: Context) -> tuple[jax.Array, T]:
        """x_BSD -> (x_BSD, what `attend` gave back)."""
        added_BSD, kept = self.attention(self.attention_norm(x_BSD), place, attend, context)
        x_BSD = context.shard(x_BSD + added_BSD, "batch", "resid_seq", "embed")
        x_BSD = x_BSD + self.mlp(self.mlp_norm(x_BSD), context)
        return context.shard(x_BSD, "batch", "resid_seq", "embed"), kept


class Decoder(nnx.Module):
    """Tokens -> normed hidden states, and the head that scores them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.embed = Embedding(model)
        self.blocks = stack(lambda: Block(model), model.layers)
        self.norm = Norm(model.norm, model.width)
        self.head = None if model.tied_embeddings else Head(model)

    def hidden(
        self, inputs_BS: jax.Array, segments_BS: jax.Array, positions_BS: jax.Array, context: Context
    ) -> jax.Array:
        """x_BSD in the compute type, after the last norm.

        inputs: int32 token ids. segments: int32; attention is causal and stays within equal numbers. positions: int32,
        what the position embedding counts; restarts with each document where attention does.
        """

        def attend(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> tuple[jax.Array, None]:
            return attention(q_BSHK, k_BSGK, v_BSGK, segments_BS, kernel=context.attention), None

        x_BSD, _ = self.run(inputs_BS, positions_BS, lambda _: attend, None, context)
        return x_BSD

    def run(
        self,
        inputs_BS: jax.Array,
        positions_BS: jax.Array,
        attend_of: Callable[[X], Attend[T]],
        per_layer: X,
        context: Context,
    ) -> tuple[jax.Array, T]:
        """(x_BSD after the last norm, what `attend` gave back, stacked over layers).

        per_layer: a tree of arrays with a leading layers axis; each layer attends by `attend_of(its slice)`.
        """
        model, (graph, blocks) = self.model, nnx.split(self.blocks)
        place = placer(model.position, positions_BS, model.attention.head_width)

        def layer(x_BSD: jax.Array, xs: tuple[Tree, X]) -> tuple[jax.Array, T]:
            block, own = xs
            return nnx.merge(graph, block)(x_BSD, place, attend_of(own), context)

        unroll = min(context.unroll, model.layers) if context.remat == "none" else 1
        x_BSD = context.shard(self.embed(inputs_BS, context), "batch", "resid_seq", "embed")
        x_BSD, kept = jax.lax.scan(rematerialized(layer, context.remat), x_BSD, (blocks, per_layer), unroll=unroll)
        return context.shard(self.norm(x_BSD), "batch", "resid_seq", "embed"), kept

    def head_VD(self) -> jax.Array:  # noqa: N802 (an array's name)
        """The head, float32, one row per token: logits are x_BSD head_VD^T."""
        return self.embed.table[...] if self.head is None else self.head.kernel[...].T


def build(model: Model) -> Decoder:
    """The module with its declarations. Allocates zeros unless under `nnx.eval_shape`: use `describe`."""
    return Decoder(model)


def describe(model: Model) -> Params[Decoder]:
    """What the decoder of this config declares, without allocating it."""
    return Params(lambda: build(model))
