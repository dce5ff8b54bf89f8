"""The figures of a run of ours: the real command, in this process, with feed, records, checkpoints and TensorBoard."""

import importlib.metadata
import json
import shutil
import statistics
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

# jax's name for a compilation by the backend, or the read of one from the cache.
COMPILED = "/jax/core/compile/backend_compile_duration"
# Steps behind a save in which it is still being written; what that costs is no cost of the loop.
WRITING = 3
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
    from jaxllm.bench.metered import Meter

    meter = Meter()
    with Compilations() as compilations:
        if code := app.train(run, folder, stop_at=last, profile=None, as_json=True, drive=meter.drive):
            raise RunError(f"{folder}: the run left with {code}")
    memory = most_memory()
    from jaxllm.train.hardware import peak_flops

    peak, _ = peak_flops(run.precision.compute)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    at = {x["step"]: x for x in lines if "seconds_per_step" in x}
    records = {r.step: r for r in read_steps(folder / "steps")}
    times = {step: x["time"] for step, x in at.items()}
    saved = saves(run, last)
    plain = undisturbed(times, UNTIMED, last, saved)
    return Figures(
        peer="jaxllm",
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")),
        seconds=tuple(times[step] - times[step - 1] for step in plain),
        tokens=records[last].tokens,
        flops=flops_per_token(run.model, run.data.seq_len),
        causal_flops=flops_per_token(run.model, run.data.seq_len, causal=True),
        peak=peak,
        first=times[1] - born,
        memory=memory,
        losses=(_finite(records[1].loss), _finite(records[last].loss)),
        cpu=statistics.median(meter.stretches[step].process for step in plain),
        compiling=compilations.until(times[1]),
        waiting=float(at[last]["waiting_share"]),
        saving=held_up(times, saved),
        loop=meter.loop(undisturbed(times, UNTIMED, last, saved, behind=WRITING)),
    )


class Compilations:
    """Inside it, what jax's backend compiles or reads from its cache is written down."""

    def __init__(self) -> None:
        self._ended: list[tuple[float, float]] = []  # (when, after how many seconds)

    def __enter__(self) -> "Compilations":
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        import jax

        jax.monitoring.unregister_event_duration_listener(self._heard)

    def until(self, when: float) -> float:
        """Seconds of what had been compiled by then (`time.time`)."""
        return sum(seconds for at, seconds in self._ended if at <= when)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self._ended.append((time.time(), duration_secs))


def saves(run: RunConfig, last: int) -> list[int]:
    """The steps after which a checkpoint was due before the last one."""
    return [step for step in range(1, last) if step % run.checkpoints.every_steps == 0]


def undisturbed(times: Mapping[int, float], first: int, last: int, saved: Sequence[int], behind: int = 1) -> list[int]:
    """The steps behind `first`, up to `last`, but for those that a save fell into and so many behind it. times: when
    the metrics of a step were written, which is when it was done; a step without one, or behind one without, is left
    out too."""
    around = {step + more for step in saved for more in range(behind + 1)}
    steps = sorted(step for step in times if first <= step <= last)
    return [b for a, b in pairwise(steps) if b == a + 1 and b not in around]


def held_up(times: Mapping[int, float], saved: Sequence[int]) -> float | None:
    """Seconds by which the second save made the steps around it longer than they are; None if there was no second."""
    if len(saved) < 2 or (step := saved[1]) + 1 not in times:
        return None
    plain = undisturbed(times, UNTIMED, max(times), saved)
    if not plain:
        return None
    typical = statistics.median(times[step] - times[step - 1] for step in plain)
    return max(0.0, times[step + 1] - times[step - 1] - 2 * typical)


def _finite(loss: float | None) -> float:
    if loss is None:
        raise RunError("a loss is not finite: these steps measure nothing")
    return loss
