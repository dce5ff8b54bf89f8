"""The two tables from logical axes to mesh axes: one for parameters, one for activations.

Every field is a logical axis; its value names the mesh axes that split it, outer first, () for none. Tables are
dataclasses so that a misspelt axis is an error and never a silent replication.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from jax.sharding import PartitionSpec

from jaxllm.core.config import suggest
from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import Mesh

MeshAxes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ParamRules:
    """How parameters, their gradients and moments are split."""

    layers: MeshAxes = ("pp",)
    embed: MeshAxes = ("fsdp", "ep", "cp")  # all that splits tokens and not the parameter itself
    expert_embed: MeshAxes = ("fsdp", "cp")
    heads: MeshAxes = ("tp",)
    kv_heads: MeshAxes = ("tp",)
    head: MeshAxes = ()
    ffn: MeshAxes = ("tp",)
    experts: MeshAxes = ("ep",)
    choices: MeshAxes = ()
    vocab: MeshAxes = ("tp",)
    norm: MeshAxes = ()  # scales are small and every device needs all of them


@dataclass(frozen=True, kw_only=True)
class ActivationRules:
    """How activations are split. resid_seq is the sequence in the residual stream, seq everywhere else."""

    batch: MeshAxes = ("dp", "fsdp", "ep")
    seq: MeshAxes = ("cp",)
    resid_seq: MeshAxes = ("cp",)
    heads: MeshAxes = ("tp",)
    kv_heads: MeshAxes = ("tp",)
    head: MeshAxes = ()
    ffn: MeshAxes = ("tp",)
    experts: MeshAxes = ()
    embed: MeshAxes = ()
    vocab: MeshAxes = ("tp",)


Rules = ParamRules | ActivationRules
PARAM_RULES, ACTIVATION_RULES = ParamRules(), ActivationRules()


def activation_rules(mesh: Mesh) -> ActivationRules:
    """The activation table of a mesh config: sequence parallelism is its resid_seq row, not an axis of its own."""
    return ActivationRules(resid_seq=("cp", "tp") if mesh.sequence_parallel else ("cp",))


def mesh_axes(rules: Rules, axis: str, where: str = "array") -> MeshAxes:
    """The mesh axes that split a logical axis. LayoutError if the table has no such axis."""
    known = [f.name for f in fields(rules)]
    if axis not in known:
        table = "parameters" if isinstance(rules, ParamRules) else "activations"
        raise LayoutError(f"{where}: the rules for {table} have no axis {axis!r}{suggest(axis, known)}")
    axes: MeshAxes = getattr(rules, axis)
    return axes


def partition_spec(rules: Rules, axes: Sequence[str | None], where: str = "array") -> PartitionSpec:
    """Logical axes of an array, one per dimension (None: never split) -> PartitionSpec of the same length.

    LayoutError for an unknown axis, or where two dimensions of one array would be split over one mesh axis; `where`
    names the array in it.
    """
    split: list[str | MeshAxes | None] = []
    taken: dict[str, str] = {}
    for axis in axes:
        over = () if axis is None else mesh_axes(rules, axis, where)
        for mesh_axis in over:
            if mesh_axis in taken:
                raise LayoutError(
                    f"{where}: axes {taken[mesh_axis]!r} and {axis!r} are both split over mesh axis {mesh_axis!r}; "
                    f"give one of them another row in the rules"
                )
            taken[mesh_axis] = str(axis)
        split.append(None if not over else over[0] if len(over) == 1 else over)
    return PartitionSpec(*split)
