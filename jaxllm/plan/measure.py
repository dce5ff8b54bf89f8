"""Compile the step of a run for hardware that is not there, and read off what it needs.

    python -m jaxllm.plan.measure REQUEST.json RESULT.json

A process of its own: the compilers for accelerators print, lock and crash as they please, and none of that is the
plan's. `measured` starts it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxllm.core.config import encode, override
from jaxllm.core.errors import ConfigError, JaxllmError
from jaxllm.core.xla_flags import TABLE, settle_flags
from jaxllm.plan.target import USABLE, USABLE_FLAG, PlanError, Target, open_devices
from jaxllm.run import RunConfig, decode_run

Json = Any

# What the compilers for accelerators need to run where there are none.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock file keeps apart processes that share a chip: here is none
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Flags that need a device, the table's and one that a user may set. A plan leaves them out and says so.
_FLAGS_NEED_DEVICE = {"xla_gpu_deterministic_ops"} | {
    f.name for flags in TABLE.values() for f in flags if f.needs_device
}
# Kernels whose libraries are asked at compile time, and what can stand in for them, the best first.
KERNELS_NEED_DEVICE = {"cudnn": ("pallas_gpu", "reference")}
_LIMIT_S = 1800
_TOO_LARGE = "does not fit in memory"


@dataclass(frozen=True)
class Measured:
    """What one device needs for one compiled step. Bytes, FLOPs and seconds; `problem` is None where it compiled.

    peak_bytes: all that is allocated at once, as the compiler laid it out. collectives: rows (mesh axes, kind,
    executions, bytes sent within a slice, between slices). roofline: seconds by resource. waste: FLOPs of the compiled
    program over those of the model's own.
    """

    problem: str | None = None
    oom: bool = False
    needed_bytes: float = 0.0
    available_bytes: float = 0.0
    mesh: dict[str, int] = field(default_factory=dict)
    attention: str = ""
    batch_size: int = 0
    parameter_bytes: float = 0.0
    optimizer_bytes: float = 0.0
    average_bytes: float = 0.0
    gradient_bytes: float = 0.0
    temporary_bytes: float = 0.0
    peak_bytes: float = 0.0
    host_bytes: float = 0.0
    flops: float = 0.0
    flops_by_kind: dict[str, float] = field(default_factory=dict)
    traffic_bytes: float = 0.0
    collectives: list[list[Any]] = field(default_factory=list)
    roofline: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    compile_seconds: float = 0.0


def measured(run: RunConfig, target: Target, *, quick: bool = False, keep_hlo: Path | None = None) -> Measured:
    """Compile the step of `run` for `target`. `quick` lets the compiler try less: a fifth of the time, a few per cent
    more memory. A layout that does not divide, and what does not fit, are results; PlanError if the compiler dies."""
    request = {
        "run": encode(run),
        "chip": target.chip.name,
        "shape": list(target.shape),
        "slices": target.slices,
        "quick": quick,
        "hlo": None if keep_hlo is None else str(keep_hlo.absolute()),
    }
    with tempfile.TemporaryDirectory(prefix="jaxllm-plan-") as folder:
        asked, told = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-m", "jaxllm.plan.measure", str(asked), str(told)]
        env, left_out = _environment(run, target)
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise PlanError(f"{target.text}: the compiler was not done after {_LIMIT_S} s") from None
        if done.returncode or not told.is_file():
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it said nothing"]
            raise PlanError(f"{target.text}: the compiler left with {done.returncode}: {last[0][:300]}")
        found = Measured(**json.loads(told.read_text()))
        return replace(found, left_out=[*left_out, *found.left_out])


def _environment(run: RunConfig, target: Target) -> tuple[dict[str, str], list[str]]:
    """(the environment that the compiler runs in, the flags that were left out of it): as a run's on the target."""
    env = os.environ | _ENVIRONMENT
    settle_flags(run.compute.xla_flags, env, target.chip.platform)
    env["XLA_FLAGS"], left_out = _without_device_flags(env.get("XLA_FLAGS", ""))
    return env, left_out


def _without_device_flags(flags: str) -> tuple[str, list[str]]:
    kept: list[str] = []
    out: list[str] = []
    for flag in flags.split():
        name = flag.lstrip("-").partition("=")[0]
        (out if name in _FLAGS_NEED_DEVICE else kept).append(flag)
    kept = [f for f in kept if "xla_force_host_platform_device_count" not in f]
    return " ".join(kept), out


def out_of_memory(text: str) -> tuple[float, float] | None:
    """(bytes needed, bytes available) of a compiler's refusal, in either of its wordings; None for another error."""
    if "RESOURCE_EXHAUSTED" not in text and "CompileTimeHbmOom" not in text and "Ran out of memory" not in text:
        return None
    unit = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    for pattern in (
        r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm",
        r"\(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM \(([\d.]+)([KMGT]?)i?B?\)",
    ):
        if (found := re.search(pattern, text)) is not None:
            return float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]]
    return 0.0, 0.0


def _measure(request: Json) -> Measured:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxllm.parallel.mesh import sizes
    from jaxllm.plan import flops as counting
    from jaxllm.rehearsal import abstract_batch

    run = decode_run(request["run"])
    target = _target(request)
    devices = open_devices(target)
    parts, left_out = _assembled(run, devices)
    mesh, batch_size = sizes(parts.mesh), main_batch(run)
    parts.check_step_batches()
    about: dict[str, Any] = {"mesh": mesh, "attention": str(parts.attention), "batch_size": batch_size}
    about["left_out"] = left_out
    state = parts.abstract_state

    def held(tree: Any) -> float:
        return float(sum(x.dtype.itemsize * np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)))

    about |= {
        "parameter_bytes": held(state.params),
        "optimizer_bytes": held(state.opt),
        "average_bytes": held(state.ema) if state.ema is not None else 0.0,
        "gradient_bytes": held(state.params),
    }
    # From jax 0.11 on, Pallas asks what GPU a kernel is for. Calls for several are mapped over their mesh, which says.
    alone = jax.sharding.use_abstract_mesh(parts.mesh.abstract_mesh) if len(devices) == 1 else nullcontext()
    with alone:
        traced = parts.step.trace(state, abstract_batch(parts, batch_size), jax.ShapeDtypeStruct((), jnp.float32))
    counted = counting.count(traced.jaxpr)
    about |= {
        "flops": counted.flops / len(devices),
        "flops_by_kind": {k: v / len(devices) for k, v in counted.by_kind.items()},
        "notes": sorted(counted.notes),
    }
    lowered = traced.lower(lowering_platforms=("tpu" if target.chip.platform == "tpu" else "cuda",))
    # Compiling for GPUs is quick as it is, and from jax 0.11 on it has no such option.
    hurried = request["quick"] and target.chip.platform == "tpu"
    options: dict[str, Any] | None = {"exec_time_optimization_effort": -1.0} if hurried else None
    started = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as err:
        if (sizes_ := out_of_memory(str(err))) is None:
            raise PlanError(f"the compiler refuses: {str(err).splitlines()[0][:300]}") from None
        needed, available = sizes_
        return Measured(problem=_TOO_LARGE, oom=True, needed_bytes=needed, available_bytes=available, **about)
    seconds = time.monotonic() - started
    if request["hlo"] is not None:
        Path(request["hlo"]).write_text(compiled.as_text())
    bubble = 0.0 if parts.schedule is None else parts.schedule.bubble
    read = read_compiled(compiled, parts.mesh, target, about["flops"], bubble)
    read["notes"] = [*about.pop("notes"), *read["notes"]]
    if run.precision.projections == "float8":
        read["notes"].append("products in float8 are timed as if they were bfloat16's")
    return Measured(compile_seconds=seconds, **about, **read)


def read_compiled(compiled: Any, mesh: Any, target: Target, flops: float, bubble: float = 0.0) -> dict[str, Any]:
    """Fields of `Measured` that a compiled program of `mesh` (jax.sharding.Mesh) tells; flops: of one device."""
    import numpy as np

    from jaxllm.parallel.mesh import sizes
    from jaxllm.plan.collectives import by_axis, collectives
    from jaxllm.plan.hlo import Module
    from jaxllm.plan.roofline import Places, roofline
    from jaxllm.plan.traffic import memory_bytes

    memory, module, notes = compiled.memory_analysis(), Module(compiled.as_text()), list[str]()
    placed = list(mesh.devices.flat)
    coords = np.array([getattr(d, "coords", (0, 0, 0)) for d in placed])
    places = Places(coords, np.array([_slice_of(d) for d in placed]))
    found = collectives(module, len(placed), places.slice_of)
    traffic = memory_bytes(module, (0,) if target.chip.platform == "tpu" else (0, 1))
    line = roofline(target.chip, places, found, flops=flops, traffic=traffic, bubble=bubble)
    if module.unknown_loops:
        notes.append(f"loops of unknown length, counted once: {len(set(module.unknown_loops))}")
    peak, host = _peak(memory, target), float(getattr(memory, "host_temp_size_in_bytes", 0))
    if host:
        notes.append("what travels to the host's memory and back takes time that no line of the roofline has")
    read: dict[str, Any] = {}
    if peak > target.usable_bytes:
        read |= {"problem": _TOO_LARGE, "oom": True, "needed_bytes": peak, "available_bytes": target.usable_bytes}
    elif target.chip.platform == "gpu":
        notes.append(f"a GPU is taken to lend {USABLE:.0%} of its memory: {USABLE_FLAG}")
    return read | {
        "temporary_bytes": float(memory.temp_size_in_bytes),
        "peak_bytes": peak,
        "host_bytes": host,
        "traffic_bytes": traffic,
        "collectives": [[list(axes), *row] for axes, *row in by_axis(found, sizes(mesh), places.slice_of)],
        "roofline": asdict(line),
        "notes": notes,
    }


def _assembled(run: RunConfig, devices: list[Any]) -> tuple[Any, list[str]]:
    """(the parts of a run on devices that are not there, what it was to use and cannot without them)."""
    from jaxllm.assembly import assemble

    parts = assemble(run, devices)
    kernel = str(parts.context.attention)
    if kernel not in KERNELS_NEED_DEVICE:
        return parts, []
    for other in KERNELS_NEED_DEVICE[kernel]:
        try:
            parts = assemble(override(run, [f"compute.attention={other}"]), devices)
        except ConfigError:  # it cannot do what the model asks of it
            continue
        return parts, [f"attention by {kernel}; compiled with {other}"]
    raise PlanError(f"compute.attention={kernel} needs a device to compile for; name another kernel")


def _slice_of(device: Any) -> int:
    """The slice of a TPU, the node of a GPU."""
    return int(device.process_index if device.platform == "gpu" else getattr(device, "slice_index", None) or 0)


def _peak(memory: Any, target: Target) -> float:
    """Bytes that must be free at once. TPU's compiler packs temporaries in time, and its peak is what it holds against
    the memory (measured: 16.3 of temporaries with a peak of 14.4 GiB compile for 15.75); on GPU they are one piece."""
    if target.chip.platform == "tpu":
        return float(memory.peak_memory_in_bytes)
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return float(held - memory.alias_size_in_bytes)


def main_batch(run: RunConfig) -> int:
    """The batch size that most tokens of a run are trained with."""
    stages = run.data.stages
    return max(stages, key=lambda s: s.steps * s.batch_size).batch_size


def _target(request: Json) -> Target:
    from jaxllm.core.chips import BY_NAME

    return Target(BY_NAME[request["chip"]], tuple(request["shape"]), request["slices"])


def _main(asked: str, told: str) -> None:
    try:
        result = _measure(json.loads(Path(asked).read_text()))
    except JaxllmError as err:
        result = Measured(problem=str(err))
    Path(told).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
