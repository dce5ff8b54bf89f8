"""Norms by their config."""

import jax
from flax import nnx

from jaxllm.models.config import RmsNorm
from jaxllm.models.declare import Declaration, param
from jaxllm.ops.norm import rms_norm


class Norm(nnx.Module):
    """RmsNorm over the width, with a learned scale that starts at one."""

    def __init__(self, norm: RmsNorm, width: int) -> None:
        self.eps = norm.eps
        self.scale = param((width,), ("norm",), Declaration(role="norm", init="ones"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """Same shape and dtype; computed in float32."""
        return rms_norm(x_BSD, self.scale[...], self.eps)
