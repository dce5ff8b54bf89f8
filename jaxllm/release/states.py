"""Recorded states read back and measured against states that were computed again, an item at a time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.assembly import Assembly
from jaxllm.checkpoint.layout import place_of
from jaxllm.checkpoint.names import named_leaves
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.core.errors import CheckpointError
from jaxllm.ledger.fold import Committed
from jaxllm.release.deviation import ArrayDeviation, ItemDeviation, StateDeviation, item_deviation
from jaxllm.train.state import State

Tree = Any


def deviation_of(
    folder: Path, parts: Assembly, recorded: Committed, state: State, digests: Mapping[str, str], after: int
) -> StateDeviation:
    """How far `state` is from the checkpoint `recorded` of the run in `folder`.

    digests: of the arrays of `state`, by name; arrays with equal ones are not measured. after: steps since the state
    was begun. Memory: one item of the recorded state lies beside `state`. Where the checkpoint is gone, cannot be read,
    or is not the one that was journaled, the result says why.
    """
    try:
        items = _items(folder, parts, recorded, state, digests)
    except CheckpointError as err:
        return StateDeviation(step=recorded.step, after=after, unread=str(err))
    if items is None:
        return StateDeviation(step=recorded.step, after=after, unread="its checkpoint is not kept any more")
    return StateDeviation(step=recorded.step, after=after, items=items)


def _items(
    folder: Path, parts: Assembly, recorded: Committed, state: State, digests: Mapping[str, str]
) -> tuple[ItemDeviation, ...] | None:
    place = place_of(folder / "checkpoints", recorded.step, recorded.lineage)
    if place is None:
        return None
    reader = CheckpointReader(place)
    manifest = reader.manifest(recorded.step)
    if manifest.state_digest != recorded.digest:
        raise CheckpointError(
            f"{place}: checkpoint {recorded.step} holds state {manifest.state_digest[:12]}, "
            f"journaled {recorded.digest[:12]}"
        )
    abstract = parts.abstract_state.items()
    found = []
    for item, tree in state.items().items():
        again = named_leaves({item: tree})
        differing = [name for name in again if digests[name] != manifest.digests.get(name)]
        off = {}
        if differing:
            kept = reader.restore_params(recorded.step, abstract[item], parts.digest, item).items
            before = named_leaves(kept)
            off = {name: measure(name, before[name], again[name]) for name in differing}
        found.append(item_deviation(item, again, off))
    return tuple(found)


def measure(name: str, recorded: jax.Array, again: jax.Array) -> ArrayDeviation:
    """How far `again` is from `recorded`, which has the same shape, dtype (a float or an integer of up to 32 bits) and
    sharding."""
    whole, distance, largest, ulp = jax.device_get(jax.block_until_ready(_measured(recorded, again)))
    known = math.isfinite(whole) and math.isfinite(distance) and (whole > 0 or distance == 0)
    relative = float(distance / whole) if known and whole > 0 else 0.0 if known else math.inf
    return ArrayDeviation(name=name, relative=relative, largest=float(largest), ulp=int(ulp))


@jax.jit
def _measured(recorded: jax.Array, again: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(sum of the magnitudes recorded, sum of the distances, largest distance of an element, its ulp): float32, uint32.

    Reductions alone, so that no device needs more than its shard.
    """
    a, b = recorded.astype(jnp.float32), again.astype(jnp.float32)
    places, others = _place(recorded), _place(again)
    apart = jnp.where(places > others, places - others, others - places).astype(jnp.uint32)
    equal = _bits(recorded) == _bits(again)
    off = jnp.where(equal, 0, jnp.abs(b - a))
    off = jnp.where(jnp.isnan(off), jnp.inf, off)
    largest = jnp.max(off, initial=0)
    return _sum(a), _sum(off), largest, jnp.max(jnp.where(off == largest, apart, 0), initial=0)


def _sum(x: jax.Array) -> jax.Array:
    """Of magnitudes, row by row and scaled: no sum overflows, and none is so long that it loses what is added late."""
    top = jnp.max(jnp.abs(x), initial=0)
    scale = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    total = jnp.abs(x / scale)
    for _ in range(x.ndim):
        total = total.sum(axis=-1)
    return scale * total


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}"))


def _place(x: jax.Array) -> jax.Array:
    """The numbers of a type in their order, int32: neighbours differ by one, and both zeros are 0. The difference of
    two is right as uint32, whatever wraps in between."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.int32)
    sign = np.uint32(1 << (8 * x.dtype.itemsize - 1))
    raw = _bits(x).astype(jnp.uint32)
    magnitude = (raw & (sign - np.uint32(1))).astype(jnp.int32)
    return jnp.where((raw & sign) != 0, -magnitude, magnitude)
