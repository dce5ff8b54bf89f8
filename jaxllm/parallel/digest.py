"""The state digest, computed where the state lies: the sums of jaxllm/core/mixing.py, the same under every sharding.

Each device mixes its own shard with global indices and adds; one psum joins the shards. One variadic reduction per
array fuses with the mixing, so that nothing of the size of an array is allocated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.core import mixing
from jaxllm.core.index import linear_index

Tree = Any
_U32 = jnp.uint32


def make_digest(abstract_tree: Tree, shardings: Tree, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """A jitted function: tree of arrays laid out by `shardings` (NamedSharding) -> lane sums, uint32 [leaves, 2].

    Rows follow `jax.tree.leaves`; `digest_strings` names them. TypeError for elements that are not 1, 2 or 4 bytes,
    ValueError for a dimension beyond 2^32.
    """
    structure: Any = jax.tree.structure(abstract_tree)
    for leaf in jax.tree.leaves(abstract_tree):
        mixing.bits_dtype(np.dtype(leaf.dtype))
        if max(leaf.shape, default=0) > 1 << 32:
            raise ValueError(f"no digest of shape {leaf.shape}: coordinates are 32 bits")
    layouts: list[NamedSharding] = structure.flatten_up_to(shardings)

    def digest(tree: Tree) -> jax.Array:
        leaves = structure.flatten_up_to(tree)
        lanes = [array_lanes(x, mesh, layout.spec) for x, layout in zip(leaves, layouts, strict=True)]
        return jnp.stack(lanes) if lanes else jnp.zeros((0, mixing.LANES), _U32)

    return jax.jit(digest, out_shardings=NamedSharding(mesh, PartitionSpec()))


def array_lanes(x: jax.Array, mesh: jax.sharding.Mesh, spec: PartitionSpec, first_index: int = 0) -> jax.Array:
    """Lane sums of one array, uint32 [2]; to be called inside jit. `first_index` is the linear index of its first
    element, as in mixing.array_lanes."""
    axes = [_names(entry) for entry in tuple(spec) + (None,) * (x.ndim - len(spec))]
    split = tuple(name for names in axes for name in names)
    shape = x.shape

    def local(block: jax.Array) -> jax.Array:
        if block.ndim == 0:
            block = block.reshape(1)
        places = [_coordinate(block.shape, d, names, mesh) for d, names in enumerate(axes or [()])]
        lo, hi = linear_index(places, shape or (1,), first_index)
        lanes = mixing.element_lanes([_word(block)], lo, hi)
        zero = np.uint32(0)
        sums = jax.lax.reduce(lanes, (zero, zero), lambda p, q: (p[0] + q[0], p[1] + q[1]), tuple(range(block.ndim)))
        total = jnp.stack(sums)
        return jax.lax.psum(total, split) if split else total

    # Replicas are equal by construction, which the checker cannot see through bit operations on axis indices.
    mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    return mapped(x)


def digest_strings(tree: Tree, lanes: Any) -> dict[str, str]:
    """Digest of every array of `tree` by dotted path: 16 hex digits, equal to mixing.array_digest of the whole array.

    lanes: what the function of `make_digest` returned for `tree`.
    """
    rows = np.asarray(lanes)
    return {path: mixing.hex_lanes(row) for path, row in zip(leaf_paths(tree), rows, strict=True)}


def leaf_paths(tree: Tree) -> list[str]:
    """Dotted names of the leaves (`params.blocks.attention.q`), in the order of `jax.tree.leaves`."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tree)]


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _coordinate(shape: tuple[int, ...], dim: int, names: tuple[str, ...], mesh: jax.sharding.Mesh) -> jax.Array:
    """Global coordinate along `dim` of every element of this device's block of `shape`."""
    shard = jnp.zeros((), _U32)
    for name in names:
        shard = shard * np.uint32(mesh.shape[name]) + jax.lax.axis_index(name).astype(_U32)
    return jax.lax.broadcasted_iota(_U32, shape, dim) + shard * np.uint32(shape[dim])


def _word(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(_U32)
    return jax.lax.bitcast_convert_type(x, mixing.bits_dtype(np.dtype(x.dtype))).astype(_U32)
