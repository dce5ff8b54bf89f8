"""Random words: threefry 2x32 with 20 rounds (https://www.thesalmons.org/john/random123/papers/random123sc11.pdf).

The words are those of `jax.random.bits` with `jax_threefry_partitionable`. That one writes all rounds out, and XLA's
CPU backend, which unrolls loops over small dimensions around them, takes seconds to compile each array of a model.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core.index import linear_index

_ROTATIONS = np.array([[13, 15, 26, 6], [17, 29, 16, 24]], np.uint32)
_PARITY = np.uint32(0x1BD11BDA)


def words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 words of this shape under a threefry key. Element i depends on key and i alone (C order)."""
    first, second = jax.random.key_data(key)
    keys = jnp.stack([first, second, first ^ second ^ _PARITY])
    rotations = jnp.asarray(_ROTATIONS)
    places = [jax.lax.broadcasted_iota(jnp.uint32, shape or (1,), d) for d in range(max(1, len(shape)))]
    lo, hi = linear_index(places, shape or (1,))

    def four_rounds(i: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def one_round(j: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a, b = pair
            a, turn = a + b, rotations[i % 2, j]
            return a, a ^ ((b << turn) | (b >> (32 - turn)))

        a, b = jax.lax.fori_loop(0, 4, one_round, pair)
        return a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + jnp.uint32(i + 1)

    high = jnp.zeros_like(lo) if hi is None else hi
    a, b = jax.lax.fori_loop(0, 5, four_rounds, (high + keys[0], lo + keys[1]))
    return (a ^ b).reshape(shape)
