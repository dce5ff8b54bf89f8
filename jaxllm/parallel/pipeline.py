"""Layers over stages (mesh axis pp): every device applies its own layers to another part of the sequences.

GPipe's schedule (https://arxiv.org/abs/1811.06965), interleaved where there are several rounds
(https://arxiv.org/abs/2104.04473, section 2.2), as one loop over ticks that every stage runs, so that the backward pass
is its transposition. Inside the loop only pp is taken: how a layer is split over the other axes stays as it is.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxllm.parallel.schedule import Schedule
from jaxllm.parallel.shard import Sharder

Tree = Any
Layer = Callable[..., tuple[jax.Array, Tree]]

_AXIS = "pp"


class Staged:
    """Layers in stages: the same as one layer after the other, up to rounding.

    Every device keeps what it needs to go back over all its micro-batches, as if it had all of their sequences at once
    and only its own layers.
    """

    def __init__(self, mesh: jax.sharding.Mesh, schedule: Schedule, shard: Sharder) -> None:
        self._mesh, self._schedule, self._shard = mesh, schedule, shard
        self._splits = math.prod(mesh.shape[axis] for axis in shard.rules.batch)

    def __call__(
        self,
        layer: Layer,
        x_BSD: jax.Array,
        rows: Tree,
        xs: Tree,
        *,
        saved: Callable[[Layer], Layer],
        unroll: int,
        join: Callable[..., Tree],
    ) -> tuple[jax.Array, Tree]:
        """(x_BSD after the last layer, what layers gave back, joined).

        layer(x, rows, xs) -> (x, back). x and all arrays of `rows` are [B, ...], those of `xs` [L, ...]. `saved` wraps
        a function for its backward pass. `join(back, uncut)` makes [L, ...] of [N, L, ...]; uncut is [N, B / N, ...] ->
        [B, ...].
        """
        N, P = self._schedule.micro_batches, self._schedule.stages
        fixed, by_stage = self._layers(xs)
        body = _Body(self._schedule, layer, saved, fixed, self._shard)
        after_NBSD, back = jax.shard_map(
            body,
            mesh=self._mesh,
            in_specs=(PartitionSpec(_AXIS), PartitionSpec(_AXIS), PartitionSpec(), PartitionSpec(_AXIS)),
            out_specs=(PartitionSpec(_AXIS), PartitionSpec(None, None, _AXIS)),
            axis_names={_AXIS},
            check_vma=False,
        )(jnp.arange(P), self._cut(x_BSD), jax.tree.map(self._cut, rows), by_stage)
        back = join(jax.tree.map(lambda a: a.reshape(N, -1, *a.shape[4:]), back), self._uncut)
        return self._uncut(after_NBSD), back

    def _cut(self, a: jax.Array) -> jax.Array:
        """[B, ...] -> [N, B / N, ...]: every device cuts its own sequences, nothing moves between devices."""
        N = self._schedule.micro_batches
        return a.reshape(self._splits, N, -1, *a.shape[1:]).swapaxes(0, 1).reshape(N, -1, *a.shape[1:])

    def _uncut(self, a: jax.Array) -> jax.Array:
        N = self._schedule.micro_batches
        return a.reshape(N, self._splits, -1, *a.shape[2:]).swapaxes(0, 1).reshape(-1, *a.shape[2:])

    def _layers(self, xs: Tree) -> tuple["_Fixed", list[jax.Array]]:
        """(what is the same in every piece, the rest).

        Numbers known when the program is built that repeat from piece to piece, such as which kind a layer is, stay out
        of what differs between stages: where all devices agree, a branch is a branch.
        """
        pieces = self._schedule.pieces
        leaves, structure = jax.tree.flatten(xs)
        same: dict[int, np.ndarray] = {}
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, np.ndarray):
                piece, *others = np.split(leaf, pieces)
                if all(np.array_equal(piece, other) for other in others):
                    same[i] = piece
        return _Fixed(structure, same), [jnp.asarray(a) for i, a in enumerate(leaves) if i not in same]


class _Fixed:
    """Puts what differs between stages and what does not back into one tree."""

    def __init__(self, structure: Any, same: dict[int, np.ndarray]) -> None:
        self._structure, self.same = structure, same

    def whole(self, same: dict[int, jax.Array], others: list[jax.Array]) -> Tree:
        rest = iter(others)
        leaves = [same[i] if i in same else next(rest) for i in range(self._structure.num_leaves)]
        return jax.tree.unflatten(self._structure, leaves)


class _Body:
    """What one stage does: arrays are its share in pp, whole in every other axis."""

    def __init__(
        self,
        schedule: Schedule,
        layer: Layer,
        saved: Callable[[Layer], Layer],
        fixed: _Fixed,
        shard: Callable[..., jax.Array],
    ) -> None:
        self._schedule, self._layer, self._saved, self._fixed, self._shard = schedule, layer, saved, fixed, shard

    def __call__(
        self, stage_P: jax.Array, x_NBSD: jax.Array, rows: Tree, layers: list[jax.Array]
    ) -> tuple[jax.Array, Tree]:
        """(x after the last layer, what layers gave back, [N, R, 1, L / (P R), ...]).

        x is [N / P, B, S, D] as it comes and goes: what is done before and after the layers is shared out too.
        """
        schedule, stage = self._schedule, stage_P[0]
        N, P, R = schedule.micro_batches, schedule.stages, schedule.rounds
        by_layer = [self._interleaved(stage, a) for a in layers]
        onward = [(p, (p + 1) % P) for p in range(P)]

        # waiting: at stage 0, for each micro-batch what begins its next round. Others keep it for company.
        def tick(carry: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Tree]:
            waiting_NBSD, arrived_BSD = carry
            waiting_NBSD = _put(waiting_NBSD, (t - P) % N, arrived_BSD, t >= P)
            entering_BSD = jnp.where(t < schedule.work, _at(waiting_NBSD, t % N), 0)
            mine = jnp.clip(t - stage, 0, schedule.work - 1)  # before and after there is nothing: zeros pass through
            x_BSD = jnp.where(stage == 0, entering_BSD, arrived_BSD)
            x_BSD, back = self._piece(x_BSD, jax.tree.map(lambda a: _at(a, mine % N), rows), by_layer, mine // N)
            return (waiting_NBSD, jax.lax.ppermute(x_BSD, _AXIS, onward)), back

        start = (self._gathered(x_NBSD), jnp.zeros_like(x_NBSD[0]))
        (waiting_NBSD, arrived_BSD), back = jax.lax.scan(tick, start, jnp.arange(schedule.ticks))
        waiting_NBSD = _put(waiting_NBSD, N - 1, arrived_BSD, True)
        back = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, stage, schedule.work), back)
        back = jax.tree.map(lambda a: a.reshape(R, N, 1, *a.shape[1:]).swapaxes(0, 1), back)
        return self._shared_out(waiting_NBSD), back

    def _gathered(self, x_NBSD: jax.Array) -> jax.Array:
        """[N / P, ...] of every stage -> [N, ...], at stage 0 alone."""
        shares = [jax.lax.ppermute(x_NBSD, _AXIS, [(p, 0)]) for p in range(self._schedule.stages)]
        return self._shard(jnp.concatenate(shares), None, "batch", "resid_seq", "embed")

    def _shared_out(self, x_NBSD: jax.Array) -> jax.Array:
        """[N, ...] of stage 0 -> [N / P, ...] at every stage."""
        shares = jnp.split(x_NBSD, self._schedule.stages)
        mine = [jax.lax.ppermute(share, _AXIS, [(0, p)]) for p, share in enumerate(shares)]
        found = functools.reduce(jnp.add, mine)  # zeros, but for the one that was sent here
        return self._shard(found, None, "batch", "resid_seq", "embed")

    def _interleaved(self, stage: jax.Array, a: jax.Array) -> jax.Array:
        """[L / P, ...], neighbours among layers -> [L / (P R), R, ...]: for every layer of a piece, that of each round.

        Float32 as parameters are: parts of a layer, like norms and routers, compute with all of their bits.
        """
        R = self._schedule.rounds
        if R == 1:
            return a
        slots = a.reshape(R, -1, *a.shape[1:])
        rounds = jnp.zeros_like(slots)
        for hop in self._schedule.hops():
            piece = _at(slots, jnp.array(hop.slots)[stage])
            piece = jax.lax.ppermute(piece, _AXIS, list(enumerate(hop.to)))
            rounds = jax.lax.dynamic_update_index_in_dim(rounds, piece, jnp.array(hop.rounds)[stage], 0)
        return rounds.swapaxes(0, 1)

    def _piece(
        self, x_BSD: jax.Array, rows: Tree, by_layer: list[jax.Array], turn: jax.Array
    ) -> tuple[jax.Array, Tree]:
        """One stage's layers of one round. Of several rounds a layer picks its own inside what is recomputed: kept,
        there would be a copy of its parameters for every tick."""
        several = self._schedule.rounds > 1

        def body(x_BSD: jax.Array, xs: tuple[dict[int, jax.Array], list[jax.Array]]) -> tuple[jax.Array, Tree]:
            same, others = xs
            if several:
                others = [_at(a, turn) for a in others]
            return self._layer(x_BSD, rows, self._fixed.whole(same, others))

        same = {i: jnp.asarray(a) for i, a in self._fixed.same.items()}
        after_BSD, back = jax.lax.scan(self._saved(body), x_BSD, (same, by_layer))
        return after_BSD, back


def _at(a: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False)


def _put(a: jax.Array, i: jax.Array | int, x: jax.Array, really: jax.Array | bool) -> jax.Array:
    """`a` with `x` at `i` of its first axis, if `really`."""
    return jax.lax.dynamic_update_index_in_dim(a, jnp.where(really, x, _at(a, jnp.asarray(i))), i, 0)
