"""The feed-forward part of a layer."""

from typing import assert_never

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.config import GeGlu, Gelu, Model, SwiGlu
from jaxllm.models.config import Mlp as MlpConfig
from jaxllm.models.context import Context, named
from jaxllm.models.declare import Declaration, matrix, param
from jaxllm.ops.gated import gated


class Mlp(nnx.Module):
    """activation(x gate) * (x up) down, or activation(x up) down for kinds without a gate.

    gate and up [D, F], down [F, D]; biases [F], [F], [D] where the config has them.
    """

    def __init__(self, model: Model, mlp: MlpConfig) -> None:
        D, F = model.width, mlp.width
        self.config = mlp
        inner, zeros = matrix(model, fan_in=D), Declaration(role="bias", init="zeros")
        gates = not isinstance(mlp, Gelu)
        self.gate = param((D, F), ("embed", "ffn"), inner) if gates else None
        self.up = param((D, F), ("embed", "ffn"), inner)
        self.down = param((F, D), ("ffn", "embed"), matrix(model, fan_in=F, residual=True))
        self.gate_bias = param((F,), ("ffn",), zeros) if gates and mlp.bias else None
        self.up_bias = param((F,), ("ffn",), zeros) if mlp.bias else None
        self.down_bias = param((D,), ("norm",), zeros) if mlp.bias else None

    def __call__(self, x_BSD: jax.Array, context: Context) -> jax.Array:
        """x_BSD -> what is added to the residual stream [B, S, D]."""
        up_BSF = _widened(x_BSD, self.up, self.up_bias, context)
        gate_BSF = up_BSF if self.gate is None else _widened(x_BSD, self.gate, self.gate_bias, context)
        h_BSF = context.shard(activated(self.config, gate_BSF, up_BSF), "batch", "seq", "ffn")
        y_BSD = context.product("BSF,FD->BSD", h_BSF, context.cast(self.down[...]))
        return y_BSD if self.down_bias is None else y_BSD + context.cast(self.down_bias[...])


def activated(mlp: MlpConfig, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What the last product takes, [..., F] as both are; kinds without a gate do not look at it."""
    match mlp:
        case SwiGlu():
            return gated(gate, up)
        case GeGlu(gelu=kind):
            return _gelu(gate, exact=kind == "exact") * up
        case Gelu(gelu=kind):
            return _gelu(up, exact=kind == "exact")
        case _:
            assert_never(mlp)


def _widened(
    x_BSD: jax.Array, kernel: nnx.Param[jax.Array], bias: nnx.Param[jax.Array] | None, context: Context
) -> jax.Array:
    y_BSF = named(context.product("BSD,DF->BSF", x_BSD, context.cast(kernel[...])), "widened")
    return y_BSF if bias is None else y_BSF + context.cast(bias[...])


def _gelu(x: jax.Array, *, exact: bool) -> jax.Array:
    """x times the normal distribution function of x, in float32, returned in x.dtype."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=not exact).astype(x.dtype)
