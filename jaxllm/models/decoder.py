"""The one decoder that assembles the parts."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.models.attention import Attend, Attention, scoring_of
from jaxllm.models.config import LayerKind, Model, Moe, ParallelNorm, PostNorm, PreNorm, SandwichNorm
from jaxllm.models.context import Context, rematerialized
from jaxllm.models.declare import Declaration, Params, param, stack, table
from jaxllm.models.mlp import Mlp
from jaxllm.models.moe import Moe as MoeLayer
from jaxllm.models.moe import Routing
from jaxllm.models.norm import Norm
from jaxllm.models.position import Place, placer
from jaxllm.ops.attention import Scoring

Tree = Any
T = TypeVar("T")
X = TypeVar("X")
Scored = Callable[[jax.Array, jax.Array, jax.Array, Scoring], tuple[jax.Array, T]]

__all__ = ["Context", "Decoder", "build", "describe"]


class Embedding(nnx.Module):
    """table [V, D]: a row per token; also the head, transposed, where embeddings are tied."""

    def __init__(self, model: Model) -> None:
        self.scale = model.embedding_scale
        self.table = param((model.vocab_size, model.width), ("vocab", "embed"), table(model))

    def __call__(self, tokens_BS: jax.Array, context: Context) -> jax.Array:
        """Tokens -> x_BSD in the compute type; an id outside the vocabulary becomes NaN."""
        # Cast after the look-up: the gradient of a row sums one term per occurrence, and does so in float32.
        table_VD = context.shard(self.table[...], "vocab", "embed")
        x_BSD = context.cast(jnp.take(table_VD, tokens_BS, axis=0, mode="fill"))
        return x_BSD if self.scale == 1.0 else x_BSD * jnp.asarray(self.scale, x_BSD.dtype)


class Head(nnx.Module):
    """kernel [D, V]: residual stream to logits."""

    def __init__(self, model: Model) -> None:
        D, V = model.width, model.vocab_size
        init = model.init
        self.kernel = param((D, V), ("embed", "vocab"), Declaration(role="head", std=init.std, cut=init.cut, fan_in=D))


class Block(nnx.Module):
    """One layer: attention and feed-forward, joined to the residual stream as the config says."""

    def __init__(self, model: Model) -> None:
        width = (model.width,)
        self.residual = model.residual
        self.attention_norm = Norm(model.norm, width)
        self.attention = Attention(model)
        self.mlp_norm = Norm(model.norm, width)
        self.mlp = MoeLayer(model, model.ffn) if isinstance(model.ffn, Moe) else Mlp(model, model.ffn)
        sandwich = isinstance(model.residual, SandwichNorm)
        self.attention_post_norm = Norm(model.norm, width) if sandwich else None
        self.mlp_post_norm = Norm(model.norm, width) if sandwich else None

    def __call__(
        self, x_BSD: jax.Array, place: Place, attend: Attend[T], damping: jax.Array | None, context: Context
    ) -> tuple[jax.Array, T, Routing | None]:
        """x_BSD -> (x_BSD, what `attend` gave back, what routers say). damping: float32 factor on what norms give."""

        def damped(norm: Norm, x_BSD: jax.Array) -> jax.Array:
            y_BSD = norm(x_BSD)
            return y_BSD if damping is None else y_BSD * damping.astype(y_BSD.dtype)

        def attended(x_BSD: jax.Array) -> tuple[jax.Array, T]:
            return self.attention(x_BSD, place, attend, context)

        def fed(x_BSD: jax.Array) -> tuple[jax.Array, Routing | None]:
            return self.mlp(x_BSD, context) if isinstance(self.mlp, MoeLayer) else (self.mlp(x_BSD, context), None)

        def shard(x_BSD: jax.Array) -> jax.Array:
            return context.shard(x_BSD, "batch", "resid_seq", "embed")

        match self.residual:
            case PreNorm():
                added_BSD, kept = attended(damped(self.attention_norm, x_BSD))
                x_BSD = shard(x_BSD + added_BSD)
                added_BSD, routing = fed(damped(self.mlp_norm, x_BSD))
                x_BSD = x_BSD + added_BSD
            case PostNorm():
                added_BSD, kept = attended(x_BSD)
                x_BSD = shard(x_BSD + self.attention_norm(added_BSD))
                added_BSD, routing = fed(x_BSD)
                x_BSD = x_BSD + self.mlp_norm(added_BSD)
            case SandwichNorm():
                assert self.attention_post_norm is not None and self.mlp_post_norm is not None
                added_BSD, kept = attended(self.attention_norm(x_BSD))
                x_BSD = shard(x_BSD + self.attention_post_norm(added_BSD))
                added_BSD, routing = fed(self.mlp_norm(x_BSD))
                x_BSD = x_BSD + self.mlp_post_norm(added_BSD)
            case ParallelNorm():
                added_BSD, kept = attended(self.attention_norm(x_BSD))
                fed_BSD, routing = fed(self.mlp_norm(x_BSD))
                x_BSD = x_BSD + added_BSD + fed_BSD
            case _:
                assert_never(self.residual)
        return shard(x_BSD), kept, routing


class PerLayer(Generic[X]):
    """One of a few values for every layer. Which one is a number that the scan over layers carries; the values are
    known when the program is built."""

    def __init__(self, model: Model, value: Callable[[LayerKind], X]) -> None:
        self._kinds = list(dict.fromkeys(model.pattern))
        self._values = [value(kind) for kind in self._kinds]
        self.which_L = np.array([self._kinds.index(model.kind(i)) for i in range(model.layers)], np.int32)

    def call(self, which: jax.Array, function: Callable[..., T], *arrays: jax.Array) -> T:
        """function(value of this layer, *arrays)."""
        if len(self._values) == 1:
            return function(self._values[0], *arrays)
        branches = [lambda *xs, value=value: function(value, *xs) for value in self._values]
        found: T = jax.lax.switch(which, branches, *arrays)
        return found


class Decoder(nnx.Module):
    """Tokens -> normed hidden states, and the head that scores them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.embed = Embedding(model)
        self.blocks = stack(lambda: Block(model), model.layers)
        self.norm = Norm(model.norm, (model.width,))
        self.head = None if model.tied_embeddings else Head(model)

    def hidden(
        self, inputs_BS: jax.Array, segments_BS: jax.Array, positions_BS: jax.Array, context: Context
    ) -> tuple[jax.Array, Routing | None]:
        """(x_BSD in the compute type, after the last norm, times logit_scale; what routers say, None if there are none)

        The penalties of routers belong into what is differentiated: their sum over the sequences / all sequences.

        inputs: int32 token ids. segments: int32; attention is causal and stays within equal numbers. positions: int32,
        what the position embedding counts; restarts with each document where attention does.
        """

        def attend(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scoring: Scoring) -> tuple[jax.Array, None]:
            how = {"kernel": context.attention, "scoring": scoring}
            return context.self_attention(q_BSHK, k_BSGK, v_BSGK, segments_BS, **how), None

        x_BSD, _, routing = self.run(inputs_BS, positions_BS, lambda _: attend, None, context)
        return x_BSD, routing

    def run(
        self,
        inputs_BS: jax.Array,
        positions_BS: jax.Array,
        attend_of: Callable[[X], Scored[T]],
        per_layer: X,
        context: Context,
    ) -> tuple[jax.Array, T, Routing | None]:
        """(x_BSD after the last norm, what `attend` gave back, stacked over layers, what routers say).

        per_layer: a tree of arrays with a leading layers axis; each layer attends by `attend_of(its slice)`.
        """
        model, (graph, blocks) = self.model, nnx.split(self.blocks)
        K = model.attention.head_width
        places = PerLayer(model, lambda kind: placer(model.position_of(kind), positions_BS, K))
        scorings = PerLayer(model, lambda kind: scoring_of(model, kind))
        damped = isinstance(model.residual, PreNorm) and model.residual.depth_scaled
        damping_L = 1 / np.sqrt(np.arange(1, model.layers + 1, dtype=np.float32)) if damped else None

        def layer(
            x_BSD: jax.Array, xs: tuple[Tree, X, jax.Array, jax.Array | None]
        ) -> tuple[jax.Array, tuple[T, Routing | None]]:
            block, own, which, damping = xs
            score = attend_of(own)

            def place(x_BSHK: jax.Array) -> jax.Array:
                return places.call(which, lambda place, x: place(x), x_BSHK)

            def attend(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> tuple[jax.Array, T]:
                return scorings.call(which, lambda how, q, k, v: score(q, k, v, how), q_BSHK, k_BSGK, v_BSGK)

            x_BSD, kept, routing = nnx.merge(graph, block)(x_BSD, place, attend, damping, context)
            return x_BSD, (kept, routing)

        unroll = min(context.unroll, model.layers) if context.remat == "none" else 1
        x_BSD = context.shard(self.embed(inputs_BS, context), "batch", "resid_seq", "embed")
        xs = (blocks, per_layer, places.which_L, damping_L)
        x_BSD, (kept, by_layer) = jax.lax.scan(rematerialized(layer, context.remat), x_BSD, xs, unroll=unroll)
        x_BSD = self.norm(x_BSD)
        if model.logit_scale != 1.0:
            x_BSD = x_BSD * jnp.asarray(model.logit_scale, x_BSD.dtype)
        routing = None if by_layer is None else by_layer._replace(penalty_B=by_layer.penalty_B.sum(axis=0))
        return context.shard(x_BSD, "batch", "resid_seq", "embed"), kept, routing

    def head_VD(self) -> jax.Array:  # noqa: N802 (an array's name)
        """The head, float32, one row per token: logits are x_BSD head_VD^T."""
        return self.embed.table[...] if self.head is None else self.head.kernel[...].T


def build(model: Model) -> Decoder:
    """The module with its declarations. Allocates zeros unless under `nnx.eval_shape`: use `describe`."""
    return Decoder(model)


def describe(model: Model) -> Params[Decoder]:
    """What the decoder of this config declares, without allocating it."""
    return Params(lambda: build(model))
