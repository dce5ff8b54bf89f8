"""From rule tables to the shardings of parameters, of what mirrors them, of batches and of activations."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import ExpertExchange
from jaxllm.parallel.exchange import Exchange, chosen
from jaxllm.parallel.mesh import here, mapped
from jaxllm.parallel.rules import (
    ACTIVATION_RULES,
    PARAM_RULES,
    ActivationRules,
    ParamRules,
    Rules,
    mesh_axes,
    partition_spec,
)

Tree = Any
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
LeafT = TypeVar("LeafT", covariant=True)


class ShardedLeaf(Protocol):
    """What a layout needs to know of a parameter."""

    @property
    def path(self) -> str: ...
    @property
    def axes(self) -> Sequence[str | None]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Declared(Protocol[LeafT]):
    """What a model declared: `tree(fn)` is a tree like its parameters with `fn(leaf)` at the leaves."""

    def tree(self, fn: Callable[[Any], Any]) -> Tree: ...
    @property
    def leaves(self) -> Sequence[LeafT]: ...


def leaf_sharding(leaf: ShardedLeaf, mesh: AnyMesh, rules: ParamRules) -> NamedSharding:
    """The sharding of one parameter. LayoutError names parameter, axis, sizes and what would do."""
    _check_divides(rules, leaf.axes, leaf.shape, mesh, leaf.path)
    return NamedSharding(mesh, partition_spec(rules, leaf.axes, leaf.path))


def param_shardings(declared: Declared[ShardedLeaf], mesh: AnyMesh, rules: ParamRules = PARAM_RULES) -> Tree:
    """A tree of NamedSharding like the parameters."""
    return declared.tree(lambda leaf: leaf_sharding(leaf, mesh, rules))


def mirrored_shardings(tree: Tree, param_shardings: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Shardings of a tree in which some subtrees mirror the parameters (moments, averages); the rest is replicated.

    tree: abstract or real, such as `jax.eval_shape(transform.init, params)`. A subtree mirrors the parameters if it has
    their structure.
    """
    structure: Any = jax.tree.structure(param_shardings)

    def mirrors(node: Tree) -> bool:
        return bool(jax.tree.structure(node) == structure)

    return jax.tree.map(lambda n: param_shardings if mirrors(n) else replicated(mesh), tree, is_leaf=mirrors)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh, rules: ActivationRules = ACTIVATION_RULES) -> NamedSharding:
    """The sharding of [B, ...] arrays: rows over dp, fsdp and ep, whole rows on every device."""
    return NamedSharding(mesh, partition_spec(rules, ("batch",), "batch"))


def check_batch(rows: int, mesh: jax.sharding.Mesh, rules: ActivationRules = ACTIVATION_RULES) -> None:
    """LayoutError if `rows` sequences (a batch, or one accumulation slice of it) do not divide over the mesh."""
    _check_divides(rules, ("batch",), (rows,), mesh, f"a batch of {rows} sequences")


def process_rows(mesh: jax.sharding.Mesh, rows: int, rules: ActivationRules = ACTIVATION_RULES) -> slice:
    """Which rows of a global batch of `rows` sequences this process feeds, as one slice.

    Processes that hold the same rows (tp across hosts) each feed them. LayoutError if a mesh gives this process rows
    that are not neighbours.
    """
    check_batch(rows, mesh, rules)
    spans = {
        index[0].indices(rows)[:2]
        for index in batch_sharding(mesh, rules).addressable_devices_indices_map((rows,)).values()
        if index is not None
    }
    start, stop = min(a for a, _ in spans), max(b for _, b in spans)
    if sum(b - a for a, b in spans) != stop - start:
        raise LayoutError(
            f"process {jax.process_index()} holds rows {sorted(spans)} of a batch of {rows}, which are not neighbours; "
            f"use a mesh in which dp*fsdp*ep is split between hosts before it is split within one"
        )
    return slice(start, stop)


class Sharder:
    """Constrains activations: `sharder(x_BSD, "batch", "resid_seq", "embed")`. The identity on one device."""

    def __init__(
        self,
        mesh: jax.sharding.Mesh,
        rules: ActivationRules = ACTIVATION_RULES,
        expert_exchange: ExpertExchange = "auto",
    ) -> None:
        self.mesh, self.rules = mesh, rules
        first = mesh.devices.flat[0]
        self.ragged = chosen(expert_exchange, first.platform, first.device_kind)

    def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array:
        where = f"activation {x.shape}"
        if len(axes) != x.ndim:
            raise LayoutError(f"{where}: {len(axes)} axes named ({', '.join(map(str, axes))}) for {x.ndim} dimensions")
        spec = partition_spec(self.rules, axes, where)
        if self.mesh.size == 1:
            return x
        _check_divides(self.rules, axes, x.shape, self.mesh, where)
        return jax.lax.with_sharding_constraint(x, NamedSharding(here(self.mesh), spec))

    def exchange(self, axis: str) -> Exchange | None:
        """How rows travel between the devices that `axis` is split over; None where it is not split."""
        over = mesh_axes(self.rules, axis)
        devices = math.prod(self.mesh.shape[a] for a in over)
        return None if devices == 1 else Exchange(over, devices, self.ragged)

    def per_device(
        self,
        function: Callable[..., jax.Array],
        inputs: Sequence[Sequence[str | None]],
        output: Sequence[str | None],
        *,
        summed: str | None = None,
        exchanged: str | None = None,
    ) -> Callable[..., jax.Array]:
        """`function` of whole arrays with these logical axes, computed by every device for its own share of them;
        results of devices that differ in their share of the axis `summed` alone are added, if one is given. With
        `exchanged` it first takes how rows travel between those that differ in their share of that axis (Exchange, or
        None). LayoutError for what does not divide. `function` itself on one device."""
        where, rules = getattr(function, "__name__", "function"), self.rules
        if exchanged is not None:
            function = partial(function, self.exchange(exchanged))
        if self.mesh.size == 1:
            return function
        specs = tuple(partition_spec(rules, axes, where) for axes in inputs)
        over = () if summed is None else mesh_axes(rules, summed, where)

        def summing(*shares: jax.Array) -> jax.Array:
            if summed is None:
                return function(*shares)
            # Gradients of what these devices have in common are added where it came in: once, not for every use of it.
            own = [_varying(share, spec, over) for share, spec in zip(shares, specs, strict=True)]
            return jax.lax.psum(function(*own), over)

        def run(*arrays: jax.Array) -> jax.Array:
            for x, axes in zip(arrays, inputs, strict=True):
                _check_divides(rules, axes, x.shape, self.mesh, f"{where}, array {x.shape}")
            out = partition_spec(rules, output, where)
            # A kernel written in Pallas does not say over which devices it varies.
            result: jax.Array = mapped(summing, self.mesh, specs, out, check_vma=summed is not None)(*arrays)
            return result

        return run


def _varying(share: jax.Array, spec: PartitionSpec, over: Sequence[str]) -> jax.Array:
    """A share of an array split by `spec`, said to differ between the devices along the mesh axes `over`."""
    split = [axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
    return jax.lax.pcast(share, tuple(axis for axis in over if axis not in split), to="varying")


def _check_divides(rules: Rules, axes: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, where: str) -> None:
    if len(axes) != len(shape):
        raise LayoutError(f"{where}: {len(axes)} axes declared for shape {tuple(shape)}; name one per dimension")
    for axis, size in zip(axes, shape, strict=True):
        over = () if axis is None else mesh_axes(rules, axis, where)
        parts = math.prod(mesh.shape[a] for a in over)
        if size % parts:
            would_do = ", ".join(str(d) for d in range(1, parts + 1) if size % d == 0 and mesh.size % d == 0)
            said = "*".join(over) + "=" + "*".join(str(mesh.shape[a]) for a in over)
            raise LayoutError(
                f"{where}: axis {axis!r} of size {size} is not divisible by {said}; use {'*'.join(over)} in {would_do}"
            )
