"""Attention over a sequence that lies on several devices: they exchange positions for heads, and back.

All-to-all sequence parallelism (DeepSpeed-Ulysses, https://arxiv.org/abs/2309.14509): in between, a device has the
whole sequence for its share of the heads.
"""

from collections.abc import Callable

import jax


def exchanged(attend: Callable[..., jax.Array], axis: str) -> Callable[..., jax.Array]:
    """`attend` of whole sequences, for devices along a mesh axis that hold a part of each, inside `jax.shard_map`.

    (q_BSHK, k_BSGK, v_BSGK, *more) -> o_BSHK: each device gives its part of the positions and all heads; `attend` sees
    all positions and every device's share of the heads, the first share on the first device. What it takes beside
    queries, keys and values is passed on as it is. Head counts are multiples of the devices along the axis.
    """

    def to_heads(x_BSHK: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x_BSHK, axis, split_axis=2, concat_axis=1, tiled=True)

    def to_positions(x_BSHK: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x_BSHK, axis, split_axis=1, concat_axis=2, tiled=True)

    def run(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, *more: jax.Array) -> jax.Array:
        return to_positions(attend(to_heads(q_BSHK), to_heads(k_BSGK), to_heads(v_BSGK), *more))

    return run
