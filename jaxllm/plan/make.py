"""A plan: the step of a run compiled for a target, what follows from it, and, where it does not fit or is asked for,
other placements of the same run that were compiled too."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllm.core.config import encode, override
from jaxllm.core.errors import LayoutError
from jaxllm.models.count import flops_per_token, parameters
from jaxllm.plan.candidates import Candidate, Chooser, placements, ways_out
from jaxllm.plan.estimate import batch_parts
from jaxllm.plan.measure import Measured, main_batch, measured
from jaxllm.plan.roofline import Roofline
from jaxllm.plan.target import PlanError, Target, require_compiler
from jaxllm.run import RunConfig

Json = dict[str, Any]
Progress = Callable[[str, int, int], None]

_WAYS = 3  # out of too little memory
_TRIES = 8  # compilations to find them
_SEARCHED, _FITTING = 16, 6  # candidates of a search: at most so many are compiled, until so many fit


def make_plan(
    run: RunConfig,
    target: Target,
    *,
    search: bool = False,
    quick: bool = False,
    progress: Progress | None = None,
    hlo: Path | None = None,
) -> Json:
    """The plan of `run` on `target`, JSON-safe.

    quick: the compiler tries less, as it always does for what a search or a way out tries; a search compiles what it
    found to be fastest once more without. PlanError if there is no compiler for the target. LayoutError if the run does
    not divide over it and no search was asked for.
    """
    require_compiler(target.chip)
    say = progress or (lambda phase, done, total: None)
    quick_here = quick or search
    say("compiling the step", 0, 1)
    try:
        whole, said = closed(run, target), None
    except LayoutError as err:
        if not search:
            raise
        whole, said = run, str(err)
    found = Measured(problem=said) if said else measured(whole, target, quick=quick_here, keep_hlo=hlo)
    say("compiling the step", 1, 1)
    if found.problem is not None and not found.oom and not search:
        raise LayoutError(found.problem)
    report: Json = {
        "run": run.name,
        "parameters": parameters(run.model),
        "target": target.text,
        "options": target.options,
        "devices": target.devices,
        "chip": dataclasses.asdict(target.chip),
        "quick": quick_here,
        **described(whole, target, found),
    }
    if found.oom:
        report["ways_out"] = _ways_out(whole, target, found.needed_bytes, say)
    if search:
        report["search"] = _search(whole, target, None if found.problem else found, say, quick)
    return report


def closed(run: RunConfig, target: Target) -> RunConfig:
    """The run with the open axis of its mesh filled. LayoutError if the devices do not divide."""
    from jaxllm.parallel.mesh import resolve

    return dataclasses.replace(run, mesh=resolve(run.mesh, target.devices))


def described(run: RunConfig, target: Target, found: Measured) -> Json:
    """What one compiled step means for the run, JSON-safe."""
    batch, S = main_batch(run), run.data.seq_len
    tokens = batch * S
    facts: Json = {
        "mesh": found.mesh or {},
        "remat": encode(run.compute.remat),
        "micro_batch": run.compute.micro_batch,
        "sequence_parallel": run.mesh.sequence_parallel,
        "batch_size": batch,
        "tokens_per_step": tokens,
        "run_tokens": run.tokens,
        "measured": dataclasses.asdict(found),
        "notes": [*found.notes, *_evaluation(run)],
    }
    if found.problem is None:
        line = Roofline(**found.roofline)
        own = flops_per_token(run.model, S) * tokens  # as MFU is counted everywhere: nothing recomputed
        rate = tokens / line.seconds
        facts["roofline"] = {
            "seconds": line.parts,
            "binds": line.binds,
            "step_seconds": line.seconds,
            "step_seconds_serial": line.serial_seconds,
            "bubble": line.bubble,
            "mfu": own / (line.seconds * target.devices * target.chip.flops),
            "mfu_serial": own / (line.serial_seconds * target.devices * target.chip.flops),
            "tokens_per_second": rate,
            "days": run.tokens / rate / 86_400,
            "days_serial": run.tokens / tokens * line.serial_seconds / 86_400,
            "model_flops": own,
        }
    return facts


def _evaluation(run: RunConfig) -> list[str]:
    parts, size = batch_parts(run), run.evaluation.batch_size
    if parts < 1 or size % parts == 0:  # negative: a mesh that is not closed
        return []
    over = "dp x fsdp x ep" + (" x micro-batches of the pipeline" if run.mesh.pp * run.mesh.across.pp > 1 else "")
    return [f"evaluation.batch_size={size} does not divide over {over} = {parts}; evaluation.batch_size={parts} does"]


def _ways_out(run: RunConfig, target: Target, needed: float, say: Progress) -> list[Json]:
    """The cheapest changes that were compiled and fit, of those that arithmetic says fit."""
    phase, ways = "looking for ways out", list[tuple[float, Json]]()
    tried = ways_out(run, target, needed)[:_TRIES]
    for i, one in enumerate(tried):
        say(phase, i, len(tried))
        row = _compiled(one)
        if row["measured"]["problem"] is None:
            ways.append((row["roofline"]["step_seconds"] * one.target.devices, row))
        if len(ways) == _WAYS:
            break
    say(phase, len(tried), len(tried))
    return [row for _, row in sorted(ways, key=lambda w: w[0])]


def _search(run: RunConfig, target: Target, written: Measured | None, say: Progress, quick: bool) -> Json:
    """The placements that arithmetic likes best, compiled, fastest first; `written` is the config's own."""
    every = list(placements(run, target))
    chooser, rows = Chooser(every), list[Json]()
    if written is not None:
        rows.append(described(run, target, written) | {"changes": [], "written": True})
    phase, fits, tried = f"compiling the best of {len(every)} placements", 0, 0
    while fits < _FITTING and tried < _SEARCHED and (one := chooser.next()) is not None:
        say(phase, tried, _SEARCHED)
        tried += 1
        if written is not None and (one.run.mesh, one.run.compute) == (run.mesh, run.compute):
            chooser.settled(one)
            continue
        row = _compiled(one)
        rows.append(row)
        fits += row["measured"]["problem"] is None
        if row["measured"]["oom"]:
            chooser.too_large(one, row["measured"]["needed_bytes"])
        else:
            chooser.settled(one)
    say(phase, _SEARCHED, _SEARCHED)
    fitting = [r for r in rows if r["measured"]["problem"] is None]
    fitting.sort(key=lambda r: (r["roofline"]["step_seconds"], r["roofline"]["step_seconds_serial"]))
    found: Json = {
        "considered": len(every),
        "compiled": len(rows),
        "ranking": fitting,
        "refused": [r for r in rows if r not in fitting],
    }
    if fitting and not quick:
        say("compiling the fastest in full", 0, 1)
        fastest = override(run, fitting[0]["changes"])
        found["fastest"] = described(fastest, target, measured(fastest, target)) | {"changes": fitting[0]["changes"]}
        say("compiling the fastest in full", 1, 1)
    return found


def _compiled(one: Candidate) -> Json:
    try:
        found = measured(one.run, one.target, quick=True)
    except PlanError as err:
        found = Measured(problem=str(err))
    return described(one.run, one.target, found) | {
        "changes": list(one.changes),
        "options": one.target.options,
        "estimated_bytes": one.estimated.bytes,
        "estimated_seconds": one.estimated.seconds,
    }
