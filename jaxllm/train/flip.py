"""Bits of parameters that are flipped on purpose, where they lie."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxllm.core.config import suggest
from jaxllm.core.errors import ConfigError
from jaxllm.models.declare import Leaf
from jaxllm.parallel.digest import leaf_paths
from jaxllm.train.config import BitFlip, Fault

Tree = Any


def check_flips(faults: Iterable[Fault], leaves: Sequence[Leaf], devices: int | None = None) -> None:
    """ConfigError for a parameter, an index or, where their number is known, a device that there is not."""
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    for i, fault in enumerate(faults):
        if not isinstance(fault, BitFlip):
            continue
        shape, name = shapes.get(fault.parameter), f"faults.{i}"
        if shape is None:
            raise ConfigError(
                f"{name}.parameter={fault.parameter!r} is no parameter of the model; `jaxllm show` lists them"
                + suggest(fault.parameter, shapes)
            )
        if len(fault.index) != len(shape) or any(n >= size for n, size in zip(fault.index, shape, strict=True)):
            raise ConfigError(
                f"{name}.index={list(fault.index)} is no element of {fault.parameter}, whose shape is {list(shape)}"
            )
        if fault.device is not None and devices is not None and fault.device >= devices:
            raise ConfigError(f"{name}.device={fault.device} lies in 0..{devices - 1}, the devices of the mesh")


def flipped(params: Tree, flips: Iterable[BitFlip], mesh: jax.sharding.Mesh) -> Tree:
    """The parameters (float32) with these bits flipped, in the copies that this process holds of the element."""
    leaves, structure = jax.tree.flatten(params)
    paths, devices = leaf_paths(params), list(mesh.devices.flat)
    for flip in flips:
        place = paths.index(flip.parameter)
        leaves[place] = _flipped(leaves[place], flip, None if flip.device is None else devices[flip.device])
    result: Tree = jax.tree.unflatten(structure, leaves)
    return result


def _flipped(x: jax.Array, flip: BitFlip, only: jax.Device | None) -> jax.Array:
    blocks = []
    for shard in x.addressable_shards:
        spans = [part.indices(size)[:2] for part, size in zip(shard.index, x.shape, strict=True)]
        here = all(low <= n < high for n, (low, high) in zip(flip.index, spans, strict=True))
        block = shard.data
        if here and only in (None, shard.device):
            own = np.array(block)
            place = tuple(n - low for n, (low, _) in zip(flip.index, spans, strict=True))
            own.view(np.uint32)[place] ^= np.uint32(1 << flip.bit)
            block = jax.device_put(own, shard.device)
        blocks.append(block)
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, blocks)
