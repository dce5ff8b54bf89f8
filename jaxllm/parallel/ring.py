"""Attention over a sequence that lies on several devices: queries stay, keys and values go round the ring.

Ring attention (https://arxiv.org/abs/2310.01889) with the causal work balanced: the sequence is cut into two chunks per
device, and device r of n holds chunks r and 2n - 1 - r ("zig-zag"). Of the chunks of any other device its queries see
exactly two pairs, whole:

    keys from a device s < r:  (r, s) and (2n-1-r, s)             both my chunks see the first of theirs
    keys from a device s > r:  (2n-1-r, s) and (2n-1-r, 2n-1-s)   my last chunk sees both of theirs

So every device does the same work at every step, by the same program: the pair in common and the one that differs are
stacked along the batch, and the operands of the latter are selected. What keys do to queries is the caller's, as
`Blocks`: this is the schedule alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
# (q_BSHK, k_BTGK, v_BTGK, segments_BS, slopes_H or None) -> o_BSHK, all of them what one device holds.
Attend = Callable[..., jax.Array]


@dataclass(frozen=True)
class Blocks:
    """What keys do to queries, as ops/partial_attention.py has it.

    forward: (q, k, v, here, there, slopes, own=) -> (o, log_sum), float32. backward: (q, k, v, here, there, slopes, do,
    log_sum, mean, own=) -> (dq, dk, dv), float32. here, there: (index, segments) of queries and keys. keep: marks what
    the backward pass needs, so that a policy of rematerialization may name it.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    keep: Callable[[jax.Array], jax.Array]


def zigzag(seq_len: int, devices: int) -> np.ndarray:
    """int32 [S]: which position of the sequence stands where, once it is laid out: device r holds the r-th equal part.

    seq_len is a multiple of 2 * devices.
    """
    chunks = np.arange(seq_len, dtype=np.int32).reshape(2 * devices, -1)
    return np.stack([chunks[:devices], chunks[: devices - 1 : -1]], axis=1).reshape(-1)


def ring(blocks: Blocks, axis: str, devices: int) -> Attend:
    """Attention for one device of `devices` along a mesh axis, to be called by all of them inside `jax.shard_map`.

    Its arrays are the device's part of the order `zigzag`. One device is a ring of its own, which sends nothing.
    """

    @jax.custom_vjp
    def attend(
        q_BSHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, segments_BS: jax.Array, slopes_H: jax.Array | None
    ) -> jax.Array:
        return forward(q_BSHK, k_BTGK, v_BTGK, segments_BS, slopes_H)[0]

    def forward(
        q_BSHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, segments_BS: jax.Array, slopes_H: jax.Array | None
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        place = _Place(axis, devices, segments_BS)
        here = place.where(place.rank, segments_BS)

        def absorb(found: Tree, arrived: Tree, step: jax.Array | int) -> Tree:
            k_BTGK, v_BTGK, segments_BS = arrived
            source = place.source(step)
            early = source < place.rank
            there = place.where(source, segments_BS)
            part = blocks.forward(
                _mine(early, q_BSHK),
                _theirs(early, k_BTGK),
                _theirs(early, v_BTGK),
                _mine(early, here),
                _theirs(early, there),
                slopes_H,
            )
            common, other = _halves(part, axis=0)
            first, last = _halves(found, axis=1)
            last = _merged(last, common)
            moved = _merged(_either(early, first, last), other)
            return _whole(_either(early, moved, first), _either(early, last, moved))

        def onward(carry: Tree, step: jax.Array) -> tuple[Tree, None]:
            found, arrived = carry
            following = place.send(arrived)  # under way while this step computes
            return (absorb(found, arrived, step), following), None

        following = place.send((k_BTGK, v_BTGK, segments_BS))
        found = blocks.forward(q_BSHK, k_BTGK, v_BTGK, here, here, slopes_H, own=True)
        if devices > 1:
            (found, arrived), _ = jax.lax.scan(onward, (found, following), jnp.arange(1, devices - 1))
            found = absorb(found, arrived, devices - 1)
        o_BSHK, log_sum_BSH = blocks.keep(found[0].astype(q_BSHK.dtype)), blocks.keep(found[1])
        return o_BSHK, (q_BSHK, k_BTGK, v_BTGK, segments_BS, slopes_H, o_BSHK, log_sum_BSH)

    def backward(saved: tuple[Any, ...], do_BSHK: jax.Array) -> tuple[jax.Array | None, ...]:
        q_BSHK, k_BTGK, v_BTGK, segments_BS, slopes_H, o_BSHK, log_sum_BSH = saved
        mean_BSH = (o_BSHK.astype(jnp.float32) * do_BSHK.astype(jnp.float32)).sum(axis=-1)
        place = _Place(axis, devices, segments_BS)
        here = place.where(place.rank, segments_BS)
        pulled = do_BSHK, log_sum_BSH, mean_BSH

        def absorb(dq_BSHK: jax.Array, owed: Tree, arrived: Tree, step: jax.Array | int) -> tuple[jax.Array, Tree]:
            k_BTGK, v_BTGK, segments_BS = arrived
            source = place.source(step)
            early = source < place.rank
            there = place.where(source, segments_BS)
            dq, *dkv = blocks.backward(
                _mine(early, q_BSHK),
                _theirs(early, k_BTGK),
                _theirs(early, v_BTGK),
                _mine(early, here),
                _theirs(early, there),
                slopes_H,
                *_mine(early, pulled),
            )
            common, other = _halves(dq, axis=0)
            dq_BSHK = dq_BSHK + _whole(_if(early, other), common + _if(~early, other))
            shares = jax.tree.map(
                lambda common, other: _whole(common + _if(early, other), _if(~early, other)), *_halves(dkv, axis=0)
            )
            return dq_BSHK, jax.tree.map(jnp.add, owed, shares)

        def onward(carry: Tree, step: jax.Array) -> tuple[Tree, None]:
            dq_BSHK, owed, arrived = carry
            # Gradients of keys and values travel with them, a step behind: those that arrive lack only my share.
            following, owed = place.send(arrived), place.send(owed)
            dq_BSHK, owed = absorb(dq_BSHK, owed, arrived, step)
            return (dq_BSHK, owed, following), None

        following = place.send((k_BTGK, v_BTGK, segments_BS))
        dq_BSHK, *owed = blocks.backward(q_BSHK, k_BTGK, v_BTGK, here, here, slopes_H, *pulled, own=True)
        if devices > 1:
            start = (dq_BSHK, owed, following)
            (dq_BSHK, owed, arrived), _ = jax.lax.scan(onward, start, jnp.arange(1, devices - 1))
            dq_BSHK, owed = absorb(dq_BSHK, place.send(owed), arrived, devices - 1)
            owed = place.send(owed)
        dk_BTGK, dv_BTGK = (x.astype(k_BTGK.dtype) for x in owed)
        no_slopes = None if slopes_H is None else jnp.zeros_like(slopes_H)
        return dq_BSHK.astype(q_BSHK.dtype), dk_BTGK, dv_BTGK, None, no_slopes

    attend.defvjp(forward, backward)
    return attend


class _Place:
    """Where a device stands in its ring."""

    def __init__(self, axis: str, devices: int, segments_BS: jax.Array) -> None:
        self._axis, self._devices = axis, devices
        self._chunk = segments_BS.shape[1] // 2
        self.rank = jax.lax.axis_index(axis) if devices > 1 else jnp.zeros((), jnp.int32)

    def source(self, step: jax.Array | int) -> jax.Array:
        """The device whose keys have arrived after `step` steps."""
        return (self.rank - step) % self._devices

    def send(self, tree: Tree) -> Tree:
        """To the next device, from the one before."""
        if self._devices == 1:
            return tree
        ring = [(r, (r + 1) % self._devices) for r in range(self._devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self._axis, ring), tree)

    def where(self, device: jax.Array, segments_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(index_BS, segments_BS) of what `device` holds."""
        starts = jnp.stack([device, 2 * self._devices - 1 - device]).astype(jnp.int32) * self._chunk
        index_S = (starts[:, None] + jnp.arange(self._chunk, dtype=jnp.int32)).reshape(-1)
        return jnp.broadcast_to(index_S, segments_BS.shape), segments_BS


# ---- the two chunks of a device, axis 1, and the two pairs of a step, axis 0 -----------------------------------------


def _halves(tree: Tree, axis: int) -> tuple[Tree, Tree]:
    def half(x: jax.Array, i: int) -> jax.Array:
        size = x.shape[axis] // 2
        return jax.lax.slice_in_dim(x, i * size, (i + 1) * size, axis=axis)

    return jax.tree.map(lambda x: half(x, 0), tree), jax.tree.map(lambda x: half(x, 1), tree)


def _whole(first: Tree, last: Tree, axis: int = 1) -> Tree:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=axis), first, last)


def _either(early: jax.Array, yes: Tree, no: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(early, a, b), yes, no)


def _if(early: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(early, x, 0)


def _mine(early: jax.Array, queries: Tree) -> Tree:
    """The queries of both pairs: my last chunk, and my first one too if the keys come before it."""
    first, last = _halves(queries, axis=1)
    return _whole(last, _either(early, first, last), axis=0)


def _theirs(early: jax.Array, keys: Tree) -> Tree:
    """The keys of both pairs: their first chunk, and their last one too if my last one sees it."""
    first, last = _halves(keys, axis=1)
    return _whole(first, _either(early, first, last), axis=0)


def _merged(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(o, log_sum) over the keys of both."""
    log_sum_BSH = jnp.logaddexp(a[1], b[1])
    weigh = [jnp.exp(x[1] - log_sum_BSH)[..., None] for x in (a, b)]
    return a[0] * weigh[0] + b[0] * weigh[1], log_sum_BSH
