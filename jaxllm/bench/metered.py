"""What the loop costs beside the steps it dispatches: its ports, each call of them timed, and the clocks of threads.

A CPU computes in threads of XLA's while the loop goes on in others, and both want the same cores. So two things are
told apart: the time that the loop's own thread takes between two dispatches without waiting for the device, and the
CPU seconds of every thread that is not XLA's, whoever started it: the loop, the feed, writers.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import jax

from jaxllm.bench.figures import Loop, Part
from jaxllm.core.errors import RunError
from jaxllm.ledger.records import StepRecord
from jaxllm.train.loop import Outcome, Plan, Ports, train
from jaxllm.train.state import Metrics, State

_WAITING = "device"  # what the loop does while it waits for a step to be computed


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """From one dispatch until the next one, that of `step`.

    seconds, own: wall and CPU seconds of the loop's thread, from the return of a dispatch to the next call; waited: of
    these wall seconds, those spent waiting for the device. host, process: CPU seconds of all threads but XLA's, and of
    all, from call to call. parts: (wall, CPU) seconds of the loop's thread by port.
    """

    step: int
    seconds: float
    waited: float
    own: float
    host: float
    process: float
    parts: dict[str, tuple[float, float]]


class Meter:
    """`drive` goes where `loop.train` does; afterwards `stretches` has what it saw, by step."""

    def __init__(self) -> None:
        self.stretches: dict[int, Stretch] = {}

    def drive(self, plan: Plan, ports: Ports, state: State, start: int) -> tuple[State, Outcome]:
        """The loop, whose ports are timed. It computes what it would compute."""
        return train(plan, cast(Ports, _Timed(ports, self.stretches)), state, start)

    def loop(self, steps: Collection[int]) -> Loop:
        """The mean cost of the stretches that end with the dispatch of one of `steps`. RunError: there is none."""
        seen = [self.stretches[step] for step in sorted(steps) if step in self.stretches]
        if not seen:
            raise RunError(
                "no two steps without a save near them: time more, or save less often (checkpoints.every_steps)"
            )
        names = {name for s in seen for name in s.parts if name != _WAITING}
        parts = [
            Part(
                name=name,
                seconds=_mean([s.parts.get(name, (0.0, 0.0))[0] for s in seen]),
                cpu=_mean([s.parts.get(name, (0.0, 0.0))[1] for s in seen]),
            )
            for name in names
        ]
        return Loop(
            seconds=_mean([s.seconds - s.waited for s in seen]),
            own=_mean([s.own for s in seen]),
            cpu=_mean([s.host for s in seen]),
            parts=tuple(sorted(parts, key=lambda part: -part.cpu)),
        )


class _Timed:
    """Ports that do what the ones they wrap do, and write down how long that takes."""

    def __init__(self, ports: Ports, stretches: dict[int, Stretch]) -> None:
        self._ports, self._stretches = ports, stretches
        self._parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._returned: tuple[float, float] | None = None  # from the dispatch before
        self._clocks = (0.0, 0.0)  # of all threads but XLA's, and of all, when it was called
        self._xla: list[int] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._ports, name)

        def timed(*arguments: Any) -> Any:
            return self._count(name, lambda: method(*arguments))

        return timed

    def record(self, step: int, batch: Any, metrics: Metrics) -> StepRecord:
        # The wait that fetching them would begin with, so that what is left of `record` is the host's work.
        self._count(_WAITING, lambda: jax.block_until_ready(metrics))
        record: StepRecord = self._count("record", lambda: self._ports.record(step, batch, metrics))
        return record

    def advance(self, state: State, batch: Any, step: int) -> tuple[State, Metrics]:
        now, own = time.perf_counter(), time.thread_time()
        if self._returned is not None and not self._xla:
            # One step was dispatched, so the threads that compute are there, and none yet that write a checkpoint.
            self._xla = _not_of_python()
        process = time.process_time()
        clocks = (process - sum(map(_cpu, self._xla)), process)
        if self._returned is not None:
            self._stretches[step] = Stretch(
                step=step,
                seconds=now - self._returned[0],
                waited=self._parts[_WAITING][0],
                own=own - self._returned[1],
                host=clocks[0] - self._clocks[0],
                process=clocks[1] - self._clocks[1],
                parts={name: (wall, cpu) for name, (wall, cpu) in self._parts.items()},
            )
        self._clocks = clocks
        self._parts.clear()
        result = self._ports.advance(state, batch, step)
        self._returned = time.perf_counter(), time.thread_time()
        return result

    def _count(self, name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return work()
        finally:
            self._parts[name][0] += time.perf_counter() - wall
            self._parts[name][1] += time.thread_time() - cpu


def _not_of_python() -> list[int]:
    """The threads of this process that some library started. Linux."""
    ours = {thread.native_id for thread in threading.enumerate()}
    return sorted({int(name) for name in os.listdir("/proc/self/task")} - ours)


def _cpu(thread: int) -> float:
    """CPU seconds of a thread of this process; 0 for one that has ended. Linux: its clock by its number, as
    pthread_getcpuclockid makes it."""
    try:
        return time.clock_gettime((~thread << 3) | 6)
    except OSError:
        return 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
