"""The middle of SwiGLU (https://arxiv.org/abs/2002.05202), whose gradient is worth spelling out.

Its two halves are settled once, before the four products that use them; XLA's CPU backend would compute them in each.
"""

import jax
import jax.numpy as jnp

from jaxllm.ops.settled import settled

_Pair = tuple[jax.Array, jax.Array]


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
