"""Looking for silent corruption: a gradient that is computed twice, and replicas that have to be the same.

It finds what does not come out the same way twice, and copies that went apart. It does not find a device that computes
the same wrong number again, nor a bit that flipped in the only copy before the first of the two computations.
"""

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import mixing
from jaxllm.core.mixing import hex_lanes
from jaxllm.models.declare import Params
from jaxllm.models.decoder import Decoder
from jaxllm.parallel import processes
from jaxllm.parallel.digest import array_lanes, leaf_paths
from jaxllm.train.config import Halt, Replay, SelfCheck, Warn
from jaxllm.train.guard import Decision, Judge, Keep, Stop
from jaxllm.train.state import State
from jaxllm.train.step import StepSpec, gradients

Tree = Any
# What is compared of a gradient beside its arrays.
_LOSSES = "losses"


def make_gradient_digest(spec: StepSpec, shardings: Tree, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """(parameters, batch) -> lanes, uint32 [arrays + 1, 2]: of every gradient, and of the losses of the sequences.

    To be jitted: the gradients live inside one program and nothing of their size leaves it.
    """

    def digest(params: Tree, batch: Mapping[str, jax.Array]) -> jax.Array:
        grads, _, loss_B, _, _ = gradients(spec, params, batch)
        grads = jax.lax.with_sharding_constraint(grads, shardings)
        layouts = jax.tree.leaves(shardings)
        lanes = [array_lanes(g, mesh, s.spec) for g, s in zip(jax.tree.leaves(grads), layouts, strict=True)]
        return jnp.stack([*lanes, array_lanes(loss_B, mesh, jax.sharding.PartitionSpec())])

    return digest


class Checker:
    """One run's self-checks, and how many there were."""

    def __init__(
        self, policy: SelfCheck, digest: jax.stages.Wrapped, declared: Params[Decoder], mesh: jax.sharding.Mesh
    ) -> None:
        self.policy = policy
        self._digest, self._names = digest, [f"gradient.{leaf.path}" for leaf in declared.leaves] + [_LOSSES]
        self._mesh = mesh
        self._gradients = self._comparisons = self._differences = 0

    def due(self, step: int) -> bool:
        """Whether the gradient of update `step` is computed twice."""
        return step % self.policy.every_steps == 0

    def gradient(self, state: State, batch: Any) -> np.ndarray:
        """Lanes of one computation, uint32 [arrays + 1, 2]. No other program is in flight meanwhile."""
        jax.block_until_ready((state, batch))
        return np.asarray(jax.block_until_ready(self._digest(state.params, batch)))

    def differing(self, once: np.ndarray, again: np.ndarray) -> list[str]:
        """The arrays that came out otherwise the second time. The same in all processes: lanes are replicated, but a
        corrupted replica may see them alone."""
        own = [name for name, equal in zip(self._names, (once == again).all(axis=1), strict=True) if not equal]
        told = processes.gather(own)
        seen = {name for names in told for name in names} if told is not None else set()
        found: list[str] = processes.share([name for name in self._names if name in seen])
        self._gradients += 1
        self._differences += bool(found)
        return found

    def replicas(self, state: State) -> list[str]:
        """Arrays whose copies differ, with the devices by their number in the mesh; the same in all processes."""
        if self._mesh.size == 1:
            return []
        told = processes.gather(copies(state.items(), self._mesh))
        found: list[str] = processes.share([] if told is None else apart([row for rows in told for row in rows]))
        self._comparisons += 1
        self._differences += bool(found)
        return found

    def verdict(self, judging: Judge, step: int, last: int, what: str, fields: list[str]) -> Decision:
        """What follows from a difference that was found at `step`; last: the last step that was executed."""
        more = f" and {len(fields) - 3} more" if len(fields) > 3 else ""
        why = f"self-check at step {step}: {what}: {', '.join(fields[:3])}{more}"
        remedy = "test or exchange the device; then the same command goes on from the last checkpoint"
        match self.policy.action:
            case Warn():
                return Keep()
            case Halt():
                return Stop(f"{why}; memory or a computation was corrupted: {remedy}")
            case Replay():
                # A checkpoint of `last` itself is one to go back to: it was saved from replicas that were the same.
                return judging.back(last + 1, last, "replay", why, remedy)
            case _ as never:
                assert_never(never)

    def counts(self) -> dict[str, int]:
        """What was done in this process's stretch of the run."""
        return {"gradients": self._gradients, "replicas": self._comparisons, "differences": self._differences}

    def text(self) -> str:
        """The counts, for people."""
        found = f"{self._differences} DIFFERENT" if self._differences else "no difference"
        done = f"{self._gradients} gradients computed twice, {self._comparisons} comparisons of replicas"
        return f"self-check: {done}: {found}"


def copies(tree: Tree, mesh: jax.sharding.Mesh) -> list[list[Any]]:
    """[array, span, device, digest] of every shard of `tree` that this process holds and that has a replica.

    span: which part of the array it is, for people. Each device mixes its own shards; nothing travels between them.
    """
    jax.block_until_ready(tree)
    numbers = {device: i for i, device in enumerate(mesh.devices.flat)}
    by_device: dict[Any, list[tuple[str, str, jax.Array]]] = {}
    for name, x in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        for shard in x.addressable_shards:
            if not x.is_fully_addressable or sum(s.index == shard.index for s in x.addressable_shards) > 1:
                span = ",".join(":".join(map(str, p.indices(n)[:2])) for p, n in zip(shard.index, x.shape, strict=True))
                by_device.setdefault(shard.device, []).append((name, f"[{span}]", shard.data))
    found: list[list[Any]] = []
    for device, shards in by_device.items():
        lanes = np.asarray(jax.block_until_ready(_shard_lanes([data for _, _, data in shards])))
        found += [
            [name, span, numbers[device], hex_lanes(row)] for (name, span, _), row in zip(shards, lanes, strict=True)
        ]
    return found


def apart(rows: list[list[Any]]) -> list[str]:
    """`array[span]: device 1 differs from 0, 2` for every part whose copies are not all the same; the fewer differ."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for name, span, device, digest in rows:
        groups.setdefault((name, span), {}).setdefault(digest, []).append(device)
    found = []
    for (name, span), by_digest in groups.items():
        if len(by_digest) > 1:
            most, *others = sorted(by_digest.values(), key=lambda devices: (-len(devices), min(devices)))
            odd = sorted(n for devices in others for n in devices)
            found.append(f"{name}{span}: device {_list(odd)} differs from {_list(sorted(most))}")
    return found


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


@jax.jit
def _shard_lanes(blocks: list[jax.Array]) -> jax.Array:
    """uint32 [blocks, 2], by index within the block."""
    return jnp.stack([_block_lanes(block) for block in blocks])


def _block_lanes(block: jax.Array) -> jax.Array:
    flat = block.reshape(-1)
    word = jax.lax.bitcast_convert_type(flat, mixing.bits_dtype(np.dtype(flat.dtype))).astype(jnp.uint32)
    lanes = mixing.element_lanes([word], jax.lax.iota(jnp.uint32, flat.size))
    return jnp.stack([lane.sum(dtype=jnp.uint32) for lane in lanes])
