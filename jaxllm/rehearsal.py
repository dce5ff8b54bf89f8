"""A dry run: the step is compiled and nothing else happens. Shapes, memory, disk."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.assembly import Assembly, assemble
from jaxllm.checkpoint import disk
from jaxllm.checkpoint.retention import most_at_once
from jaxllm.core.errors import RunError
from jaxllm.models.count import parameters
from jaxllm.parallel.mesh import layout_text, sizes
from jaxllm.parallel.shard import batch_sharding
from jaxllm.run import RunConfig

Json = dict[str, Any]


def rehearse(run: RunConfig, folder: Path) -> Json:
    """Compile the step of every stage's batch size on the devices that are there; `lines` are for people.

    Bytes are per device. The compiler's peak counts arguments, results and temporaries of one step.
    """
    parts = assemble(run)
    parts.check_batches()
    one_save = disk.save_bytes(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.abstract_state))
    kept = most_at_once(run.checkpoints, run.steps)
    report: Json = {
        "run": run.name,
        "parameters": parameters(run.model),
        "mesh": sizes(parts.mesh),
        "attention": parts.context.attention,
        "state_bytes_per_device": _state_bytes(parts),
        "checkpoint_bytes": one_save,
        "checkpoints_at_once": kept,
        "disk_free_bytes": disk.free_bytes(folder),
        "steps": [_compiled(parts, size) for size in sorted({s.batch_size for s in run.data.stages})],
    }
    report["lines"] = _lines(report)
    return report


def _state_bytes(parts: Assembly) -> int:
    shapes = jax.tree.leaves(parts.abstract_state)
    return sum(jnp.dtype(x.dtype).itemsize * _size(x.sharding.shard_shape(x.shape)) for x in shapes)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _compiled(parts: Assembly, batch_size: int) -> Json:
    sharding, S = batch_sharding(parts.mesh), parts.run.data.seq_len
    kinds = {"inputs": "int32", "labels": "int32", "segments": "int32", "positions": "int32", "loss_mask": "bool"}
    batch = {k: jax.ShapeDtypeStruct((batch_size, S), jnp.dtype(v), sharding=sharding) for k, v in kinds.items()}
    lr = jax.ShapeDtypeStruct((), jnp.float32)
    memory = parts.step.lower(parts.abstract_state, batch, lr).compile().memory_analysis()
    if memory is None:
        raise RunError(
            f"the {parts.platform} backend does not tell what a compiled step needs; train without --dry-run"
        )
    return {
        "batch_size": batch_size,
        "sequences_per_device": batch_size // parts.splits,
        "argument_bytes": int(memory.argument_size_in_bytes),
        "temporary_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": int(memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes)
        - int(memory.alias_size_in_bytes),
    }


def _lines(report: Json) -> list[str]:
    mesh = layout_text(report["mesh"])
    lines = [
        f"{report['run']}: {report['parameters']:,} parameters, mesh {mesh}, attention {report['attention']}",
        f"state {disk.readable(report['state_bytes_per_device'])} per device",
    ]
    for s in report["steps"]:
        lines.append(
            f"a step of {s['batch_size']} sequences ({s['sequences_per_device']} per device) compiles; peak "
            f"{disk.readable(s['peak_bytes'])} per device, {disk.readable(s['temporary_bytes'])} of it temporary"
        )
    lines.append(
        f"a checkpoint takes up to {disk.readable(report['checkpoint_bytes'])}, {report['checkpoints_at_once']} lie "
        f"side by side; {disk.readable(report['disk_free_bytes'])} are free"
    )
    return lines
