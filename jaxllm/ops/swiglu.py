"""The two steps of SwiGLU (https://arxiv.org/abs/2002.05202) whose gradients are worth spelling out.

Left to autodiff, XLA's CPU backend writes the gradient of a widening product in transposed order with the elementwise
work before it fused in, which took half the time of the whole layer. Spelled as below the narrow operand is the one
that is transposed, and the elementwise gradients are finished once before the products that use them.
"""

import jax
import jax.numpy as jnp

from jaxllm.ops.settled import settled

_Pair = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def widen(x_BSD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x w, [B, S, F], for F > D: both of one dtype, which the result and the gradients have too."""
    return jnp.einsum("BSD,DF->BSF", x_BSD, w_DF)


def _widen_forward(x_BSD: jax.Array, w_DF: jax.Array) -> tuple[jax.Array, _Pair]:
    return widen(x_BSD, w_DF), (x_BSD, w_DF)


def _widen_backward(saved: _Pair, dy_BSF: jax.Array) -> _Pair:
    x_BSD, w_DF = saved
    return jnp.einsum("BSF,DF->BSD", dy_BSF, w_DF), jnp.einsum("BSD,BSF->DF", x_BSD, dy_BSF)


widen.defvjp(_widen_forward, _widen_backward)


@jax.custom_vjp
def gated(gate_BSF: jax.Array, up_BSF: jax.Array) -> jax.Array:
    """silu(gate) * up, computed in float32, returned in the dtype of the arguments, which are all that is kept."""
    gate, up = gate_BSF.astype(jnp.float32), up_BSF.astype(jnp.float32)
    return (jax.nn.silu(gate) * up).astype(gate_BSF.dtype)


def _gated_forward(gate_BSF: jax.Array, up_BSF: jax.Array) -> tuple[jax.Array, _Pair]:
    return gated(gate_BSF, up_BSF), (gate_BSF, up_BSF)


def _gated_backward(saved: _Pair, dy_BSF: jax.Array) -> _Pair:
    gate_BSF, up_BSF = saved
    gate, up, dy = (a.astype(jnp.float32) for a in (gate_BSF, up_BSF, dy_BSF))
    sigmoid = jax.nn.sigmoid(gate)
    dgate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
    dup = dy * gate * sigmoid
    return settled(dgate.astype(gate_BSF.dtype)), settled(dup.astype(up_BSF.dtype))


gated.defvjp(_gated_forward, _gated_backward)
