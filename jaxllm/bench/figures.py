"""What was measured of one process that trained, as one line of JSON that any peer can print. No jax."""

import json
import statistics
from collections.abc import Iterable
from typing import Any

from jaxllm.core.config import config, decode, encode
from jaxllm.core.errors import RunError

MARK = "FIGURES "


@config
class Part:
    """Seconds and CPU seconds of a step that the loop's thread spent in one of its ports (jaxllm/train/loop.py)."""

    name: str
    seconds: float
    cpu: float


@config
class Loop:
    """What goes on between two dispatches beside the device's work: means per step (jaxllm/bench/metered.py).

    seconds: of the loop's own thread, without those in which it waits for the device. own: its CPU seconds in them.
    cpu: CPU seconds of all threads that do not compute steps, the dispatch itself included.
    """

    seconds: float
    own: float
    cpu: float
    parts: tuple[Part, ...]


@config
class Figures:
    """A peer and its steps.

    versions: of what computed, for people. seconds: of each timed step, the first ones (compilation, warm-up) left out.
    tokens: of a step. flops: of the model for a token, with all of attention; causal_flops: with the half that a causal
    mask leaves. peak: FLOP/s of a matrix product of 2,048^3, in the same process. first: seconds from the start of the
    process until its first step was done. memory: the most that the process had resident, bytes. losses: of the first
    and the last step, to see that the work is the same. cpu: CPU seconds of the process for a step, the median.
    compiling: seconds of compiling, or of reading what was compiled before, until the first step was done. waiting: the
    share of the time that went to waiting for data; saving: seconds by which a second asynchronous checkpoint held up
    the loop; loop: what the loop costs. None where that is not known.
    """

    peer: str
    versions: str
    seconds: tuple[float, ...]
    tokens: int
    flops: float
    causal_flops: float
    peak: float
    first: float
    memory: int
    losses: tuple[float, float]
    cpu: float | None = None
    compiling: float | None = None
    waiting: float | None = None
    saving: float | None = None
    loop: Loop | None = None

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) <= 0:
            raise ValueError(f"seconds={list(self.seconds)} are no times of steps")

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def speed(self) -> float:
        """Tokens per second, at the median step."""
        return self.tokens / self.step

    @property
    def share(self) -> float:
        """Of the peak, counting all of attention."""
        return self.speed * self.flops / self.peak

    @property
    def causal_share(self) -> float:
        """Of the peak, counting the half of attention that a causal mask leaves."""
        return self.speed * self.causal_flops / self.peak


def loop_text(figures: Figures) -> str:
    """What the loop costs, for people: as shares of a step's time and CPU seconds, and by port."""
    loop, cpu = figures.loop, figures.cpu
    if loop is None or cpu is None:
        return "the loop was not measured"
    parts = ", ".join(f"{p.name} {1e3 * p.seconds:.2f} ({1e3 * p.cpu:.2f})" for p in loop.parts)
    return (
        f"the loop, of a step of {figures.step:.3f} s and {cpu:.3f} CPU seconds: {loop.seconds / figures.step:.2%} of "
        f"the time ({1e3 * loop.seconds:.2f} ms), {loop.cpu / cpu:.2%} of the CPU seconds ({1e3 * loop.cpu:.2f} ms, of "
        f"its own thread {1e3 * loop.own:.2f} ms); by port, ms (CPU ms): {parts}"
    )


def line(figures: Figures) -> str:
    """What a peer prints."""
    return MARK + json.dumps(encode(figures), allow_nan=False)


def found_in(output: Iterable[str]) -> Figures:
    """The figures that a peer printed among other lines. RunError: there are none, or more than one."""
    lines = [text for text in output if text.startswith(MARK)]
    if len(lines) != 1:
        raise RunError(f"a peer prints one line that begins with {MARK.strip()}, this one printed {len(lines)}")
    raw: Any = json.loads(lines[0][len(MARK) :])
    return decode(Figures, raw, "figures")
