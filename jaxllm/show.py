"""What a config means: every parameter with its axes and bytes, tokens, FLOPs. Allocates nothing."""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType
from rich.table import Table

from jaxllm.assembly import chosen_attention
from jaxllm.core.config import encode
from jaxllm.models.count import flops_per_token, parameters
from jaxllm.models.decoder import describe
from jaxllm.ops.attention import Choice
from jaxllm.optim.schedule import learning_rate
from jaxllm.parallel.config import AXES
from jaxllm.parallel.mesh import layout_text, resolve, shape_of, slices_of
from jaxllm.parallel.shard import param_shardings
from jaxllm.progress import people
from jaxllm.run import RunConfig, identity_hash
from jaxllm.sequence import ON_RING, on_ring

Json = dict[str, Any]


def describe_run(run: RunConfig) -> Json:
    """The resolved config and what follows from it, JSON-safe."""
    mesh, declared = _planned_mesh(run), describe(run.model)
    named = run.compute.attention  # it may be for another machine than this one
    choice = chosen_attention(run, jax.default_backend()) if named == "auto" else Choice(named)
    choice = ON_RING if on_ring(run, mesh) else choice
    shardings = param_shardings(declared, mesh)
    rows = []
    for leaf, sharding in zip(declared.leaves, jax.tree.leaves(shardings), strict=True):
        local = sharding.shard_shape(leaf.shape)
        rows.append(
            {
                "path": leaf.path,
                "shape": list(leaf.shape),
                "axes": list(leaf.axes),
                "mesh": [list(a) if isinstance(a, tuple) else a for a in sharding.spec],
                "role": leaf.declaration.role,
                "parameters": math.prod(leaf.shape),
                "bytes_per_device": math.prod(local) * 4,
            }
        )
    count = parameters(run.model)
    dense = flops_per_token(run.model, run.data.seq_len)
    return {
        "config": encode(run),
        "identity": identity_hash(run),
        "mesh": {k: int(v) for k, v in mesh.shape.items()},
        "attention": choice.kernel,
        "attention_why": choice.why,
        "parameters": count,
        "parameter_table": rows,
        "state_bytes_per_device": sum(r["bytes_per_device"] for r in rows) * (4 if run.optimizer.ema else 3),
        "steps": run.steps,
        "tokens": run.tokens,
        "stages": [
            {
                "name": s.name,
                "steps": s.steps,
                "tokens_per_step": s.batch_size * run.data.seq_len,
                "tokens": s.steps * s.batch_size * run.data.seq_len,
                "mixture": {m.source: m.weight for m in s.mixture},
            }
            for s in run.data.stages
        ],
        "learning_rate": {
            str(k): learning_rate(run.optimizer.schedule, k)
            for k in sorted({0, run.steps // 2, run.steps - 1})
            if 0 <= k < run.steps
        },
        "flops_per_token": dense,
        "flops": dense * run.tokens,
    }


def _planned_mesh(run: RunConfig) -> AbstractMesh:
    """The mesh of the config, whether or not there are so many devices here; -1 is what is here, if it divides."""
    within = [getattr(run.mesh, axis) for axis in AXES]
    fixed = math.prod(n for n in within if n != -1) * slices_of(run.mesh)
    here = jax.device_count()
    resolved = resolve(run.mesh, here if -1 in within and here % fixed == 0 else fixed)
    return AbstractMesh(shape_of(resolved), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def print_run(report: Json) -> None:
    """The report for people."""
    console = people()
    table = Table(
        "parameter", "shape", "axes", "mesh axes", "role", "parameters", "bytes/device", box=None, pad_edge=False
    )
    for column in (5, 6):
        table.columns[column].justify = "right"
    for r in report["parameter_table"]:
        mesh = ", ".join("-" if a is None else "x".join(a) if isinstance(a, list) else a for a in r["mesh"]) or "-"
        table.add_row(
            r["path"],
            "x".join(map(str, r["shape"])),
            ", ".join(a or "-" for a in r["axes"]),
            mesh,
            r["role"],
            f"{r['parameters']:,}",
            f"{r['bytes_per_device']:,}",
        )
    console.print(table)
    mesh, attention = layout_text(report["mesh"]), Choice(report["attention"], report["attention_why"])
    console.print(f"parameters {report['parameters']:,}   mesh {mesh}   attention {attention}")
    console.print(f"parameters, optimizer state: {report['state_bytes_per_device']:,} bytes per device")
    for s in report["stages"]:
        mixture = ", ".join(f"{k} {v:g}" for k, v in s["mixture"].items())
        console.print(
            f"stage {s['name']}: {s['steps']:,} steps of {s['tokens_per_step']:,} tokens = {s['tokens']:,} tokens "
            f"from {mixture}"
        )
    rates = ", ".join(f"update {k}: {v:.3e}" for k, v in report["learning_rate"].items())
    console.print(f"learning rate at {rates}")
    console.print(
        f"{report['steps']:,} steps, {report['tokens']:,} tokens, {report['flops_per_token']:.3e} FLOPs per token, "
        f"{report['flops']:.3e} in all"
    )
    console.print(f"identity {report['identity']}")
