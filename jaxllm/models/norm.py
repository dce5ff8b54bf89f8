"""Norms by their config."""

import math
from collections.abc import Sequence
from typing import Literal, assert_never

import jax
from flax import nnx

from jaxllm.core.dims import Axis
from jaxllm.models.config import LayerNorm, RmsNorm
from jaxllm.models.config import Norm as NormConfig
from jaxllm.models.declare import Declaration, param
from jaxllm.ops.norm import layer_norm, rms_norm


class Norm(nnx.Module):
    """The norm of a config over the last dimensions of what it is given, as many as `shape` has.

    The learned scale starts so that it changes nothing, the bias, where there is one, at zero.
    """

    def __init__(self, norm: NormConfig, shape: Sequence[int], axes: Sequence[Axis] = ("norm",)) -> None:
        self.config, self.dims, self.size = norm, len(shape), math.prod(shape)
        start: Literal["ones", "zeros"] = "ones"
        if isinstance(norm, RmsNorm) and norm.scale == "from_one":
            start = "zeros"
        self.scale = param(shape, axes, Declaration(role="norm", init=start))
        biased = isinstance(norm, LayerNorm) and norm.bias
        self.bias = param(shape, axes, Declaration(role="bias", init="zeros")) if biased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype; computed in float32."""
        flat = x if self.dims == 1 else x.reshape(*x.shape[: -self.dims], self.size)
        scale = self.scale[...].reshape(self.size)
        match self.config:
            case RmsNorm(eps=eps, scale=kind):
                y = rms_norm(flat, scale if kind == "plain" else 1 + scale, eps)
            case LayerNorm(eps=eps):
                y = layer_norm(flat, scale, None if self.bias is None else self.bias[...].reshape(self.size), eps)
            case _:
                assert_never(self.config)
        return y.reshape(x.shape)
