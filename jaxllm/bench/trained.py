"""The figures of a run of ours: the real command, in this process, with feed, records, checkpoints and TensorBoard."""

import importlib.metadata
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from jaxllm.bench.figures import Figures
from jaxllm.bench.process import age, most_memory
from jaxllm.core.errors import RunError
from jaxllm.ledger.records import read_steps
from jaxllm.models.count import flops_per_token
from jaxllm.run import RunConfig

# Steps that are not timed: the first compiles, and the feed and the allocator settle.
UNTIMED = 3


def measure(run: RunConfig, folder: Path, *, steps: int) -> Figures:
    """Train `run` anew in `folder`, which is removed first, until so many steps were timed.

    RunError: it did not get there, or does not write a line of metrics for every step.
    """
    if run.logging.every_steps != 1:
        raise RunError(f"logging.every_steps={run.logging.every_steps}: the bench reads the time of every step; use 1")
    shutil.rmtree(folder, ignore_errors=True)
    last = UNTIMED + steps
    born = time.time() - age()
    from jaxllm import app

    if code := app.train(run, folder, stop_at=last, profile=None, as_json=True):
        raise RunError(f"{folder}: the run left with {code}")
    memory = most_memory()
    from jaxllm.train.hardware import peak_flops

    peak, _ = peak_flops(run.precision.compute)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    at = {x["step"]: x for x in lines if "seconds_per_step" in x}
    records = {r.step: r for r in read_steps(folder / "steps")}
    seconds = timed({step: x["time"] for step, x in at.items()}, UNTIMED, last, saves(run, last))
    return Figures(
        peer="jaxllm",
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")),
        seconds=tuple(seconds),
        tokens=records[last].tokens,
        flops=flops_per_token(run.model, run.data.seq_len),
        causal_flops=flops_per_token(run.model, run.data.seq_len, causal=True),
        peak=peak,
        first=at[1]["time"] - born,
        memory=memory,
        losses=(_finite(records[1].loss), _finite(records[last].loss)),
        waiting=float(at[last]["waiting_share"]),
        saving=held_up({step: x["time"] for step, x in at.items()}, saves(run, last)),
    )


def saves(run: RunConfig, last: int) -> list[int]:
    """The steps after which a checkpoint was due before the last one."""
    return [step for step in range(1, last) if step % run.checkpoints.every_steps == 0]


def timed(times: Mapping[int, float], first: int, last: int, saved: Sequence[int]) -> list[float]:
    """Seconds of the steps behind `first`, up to `last`, but for those that a save fell into. times: when the metrics
    of a step were written, which is when it was done."""
    around = {step + more for step in saved for more in (0, 1)}
    steps = sorted(step for step in times if first <= step <= last)
    return [times[b] - times[a] for a, b in pairwise(steps) if b == a + 1 and b not in around]


def held_up(times: Mapping[int, float], saved: Sequence[int]) -> float | None:
    """Seconds by which the second save made the steps around it longer than they are; None if there was no second."""
    if len(saved) < 2 or (step := saved[1]) + 1 not in times:
        return None
    typical = timed(times, UNTIMED, max(times), saved)
    if not typical:
        return None
    return max(0.0, times[step + 1] - times[step - 1] - 2 * sorted(typical)[len(typical) // 2])


def _finite(loss: float | None) -> float:
    if loss is None:
        raise RunError("a loss is not finite: these steps measure nothing")
    return loss
