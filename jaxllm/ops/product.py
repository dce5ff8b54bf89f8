"""A product of activations and a kernel, spelled for XLA's CPU backend, gradients too.

Left to autodiff, its gradients are written in transposed order with the elementwise work before them fused in, once
for each of the two products that read it, which took half the time of a layer. Here what arrives is settled once, and
the activations are what is transposed. Products in bfloat16 come out as float32 and are rounded after: one that should
come out as bfloat16 is computed by float32 instructions, at half the speed or less.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllm.ops.settled import settled

_Pair = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """As `jnp.einsum(spec, x, w)`: two operands of one dtype, which the result and both gradients have too; sums are
    float32. spec: names every axis, 'BSD,DHK->BSHK' say; none of them occurs once."""
    return _rounded(spec, x, w)


def _rounded(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32).astype(a.dtype)


def _forward(spec: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, _Pair]:
    return product(spec, x, w), (x, w)


def _backward(spec: str, saved: _Pair, dy: jax.Array) -> _Pair:
    x, w = saved
    of_x, of_w, of_y = spec.replace("->", ",").split(",")
    dy = settled(dy)
    return _rounded(f"{of_y},{of_w}->{of_x}", dy, w), _rounded(f"{of_x},{of_y}->{of_w}", x, dy)


product.defvjp(_forward, _backward)
