"""The feed-forward part of a layer as a mixture of experts."""

from typing import NamedTuple, assert_never

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.config import Capacity, Dropless, Gelu, Model
from jaxllm.models.config import Moe as MoeConfig
from jaxllm.models.context import WIDENED, Axes, Context
from jaxllm.models.declare import Declaration, matrix, param
from jaxllm.models.mlp import Mlp, activated
from jaxllm.ops.moe import Product, balance_loss, capacity, choose, dropless, limited, router_z_loss

# Axes, as activations: every device has the kernels of all experts, whole but for its share of F.
_TOKENS: Axes = ("batch", "seq", "embed")
_CHOSEN: Axes = ("batch", "seq", None)
_WIDENING: Axes = ("experts", "embed", "ffn")
_DOWN: Axes = ("experts", "ffn", "embed")


class Routing(NamedTuple):
    """What routers say beside their choice, of one layer ([E], [B]) or of all ([L, E], [B] summed over layers).

    loads: int32, tokens of the batch that chose each expert, also those that its capacity did not reach. penalty:
    float32, the auxiliary losses of each sequence, times their coefficients.
    """

    loads_LE: jax.Array
    penalty_B: jax.Array


class Moe(nnx.Module):
    """The sum of the chosen experts' results, each times its weight, and of what the shared network gives.

    router [D, E]; gate and up [E, D, F], down [E, F, D]; balance [E] where the config has a bias_rate.
    """

    def __init__(self, model: Model, moe: MoeConfig) -> None:
        D, E, F = model.width, moe.experts, moe.expert.width
        self.config = moe
        inner = matrix(model, fan_in=D)
        gates = not isinstance(moe.expert, Gelu)
        self.router = param((D, E), ("embed", "choices"), inner)
        self.gate = param((E, D, F), ("experts", "expert_embed", "ffn"), inner) if gates else None
        self.up = param((E, D, F), ("experts", "expert_embed", "ffn"), inner)
        self.down = param((E, F, D), ("experts", "ffn", "expert_embed"), matrix(model, fan_in=F, residual=True))
        biased = moe.bias_rate is not None
        self.balance = param((E,), ("choices",), Declaration(role="balance", init="zeros")) if biased else None
        self.shared = None if moe.shared is None else Mlp(model, moe.shared)

    def __call__(self, x_BSD: jax.Array, context: Context) -> tuple[jax.Array, Routing]:
        """x_BSD -> (what is added to the residual stream [B, S, D], what the router says)."""
        moe = self.config
        x_BSD = context.shard(x_BSD, "batch", "seq", "embed")
        # Float32 to the last bit: a rounded logit sends a token elsewhere.
        exact = jax.lax.Precision.HIGHEST
        logits_BSE = jnp.einsum("BSD,DE->BSE", x_BSD.astype(jnp.float32), self.router[...], precision=exact)
        logits_BSE = context.shard(logits_BSE, "batch", "seq", None)
        choice = choose(
            logits_BSE,
            None if self.balance is None else self.balance[...],
            top_k=moe.top_k,
            gate=moe.gate,
            normalize=moe.normalize,
            scale=moe.scale,
        )
        penalty_B = moe.balance * balance_loss(choice) + moe.z_loss * router_z_loss(logits_BSE)
        y_BSD = self._served(x_BSD, choice.experts_BSJ, choice.weights_BSJ, context)
        if self.shared is not None:
            y_BSD = y_BSD + self.shared(x_BSD, context)
        return y_BSD, Routing(choice.loads_BE.sum(axis=0), penalty_B)

    def _served(self, x_BSD: jax.Array, experts_BSJ: jax.Array, weights_BSJ: jax.Array, context: Context) -> jax.Array:
        """The experts' part. Every device serves its own sequences; where it has a share of F, shares are added."""
        moe, gates = self.config, self.gate is not None

        def serve(
            x_BSD: jax.Array, experts_BSJ: jax.Array, weights_BSJ: jax.Array, down: jax.Array, *widening: jax.Array
        ) -> jax.Array:
            def network(x: jax.Array, product: Product) -> jax.Array:
                wide = [checkpoint_name(product(x, kernel), WIDENED) for kernel in widening]
                return checkpoint_name(product(activated(moe.expert, wide[0], wide[-1]), down), WIDENED)

            match moe.dispatch:
                case Dropless():
                    y_BSD = dropless(x_BSD, experts_BSJ, weights_BSJ, moe.experts, network)
                case Capacity(factor=factor):
                    served = capacity(x_BSD.shape[1], moe.top_k, moe.experts, factor)
                    y_BSD = limited(x_BSD, experts_BSJ, weights_BSJ, moe.experts, network, served=served)
                case _:
                    assert_never(moe.dispatch)
            return y_BSD.astype(x_BSD.dtype)

        kernels = [self.down, self.gate, self.up] if gates else [self.down, self.up]
        inputs = (_TOKENS, _CHOSEN, _CHOSEN, _DOWN, *[_WIDENING] * (len(kernels) - 1))
        run = context.per_device(serve, inputs, _TOKENS, summed="ffn")
        return run(x_BSD, experts_BSJ, weights_BSJ, *(context.cast(k[...]) for k in kernels if k is not None))
