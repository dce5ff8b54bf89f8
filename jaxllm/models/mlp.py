"""The feed-forward part of a layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.config import Model
from jaxllm.models.context import WIDENED, Context
from jaxllm.models.declare import Declaration, param, residual_std
from jaxllm.ops.swiglu import gated, widen


class Mlp(nnx.Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202): silu(x gate) * (x up) down; gate and up [D, F], down [F, D]."""

    def __init__(self, model: Model) -> None:
        D, F = model.width, model.ffn.width
        inner = Declaration(role="matrix", std=model.init.std, fan_in=D)
        self.gate = param((D, F), ("embed", "ffn"), inner)
        self.up = param((D, F), ("embed", "ffn"), inner)
        self.down = param((F, D), ("ffn", "embed"), Declaration(role="matrix", std=residual_std(model), fan_in=F))

    def __call__(self, x_BSD: jax.Array, context: Context) -> jax.Array:
        """x_BSD -> what is added to the residual stream [B, S, D]."""
        gate_BSF = checkpoint_name(widen(x_BSD, context.cast(self.gate[...])), WIDENED)
        up_BSF = checkpoint_name(widen(x_BSD, context.cast(self.up[...])), WIDENED)
        h_BSF = context.shard(gated(gate_BSF, up_BSF), "batch", "seq", "ffn")
        return jnp.einsum("BSF,FD->BSD", h_BSF, context.cast(self.down[...]))
