"""What was measured of one process that trained, as one line of JSON that any peer can print. No jax."""

import json
import statistics
from collections.abc import Iterable
from typing import Any

from jaxllm.core.config import config, decode, encode
from jaxllm.core.errors import RunError

MARK = "FIGURES "


@config
class Figures:
    """A peer and its steps.

    versions: of what computed, for people. seconds: of each timed step, the first ones (compilation, warm-up) left out.
    tokens: of a step. flops: of the model for a token, with all of attention; causal_flops: with the half that a causal
    mask leaves. peak: FLOP/s of a matrix product of 2,048^3, in the same process. first: seconds from the start of the
    process until its first step was done. memory: the most that the process had resident, bytes. losses: of the first
    and the last step, to see that the work is the same. waiting: the share of the time that went to waiting for data;
    saving: seconds by which a second asynchronous checkpoint held up the loop. None where that is not known.
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
    waiting: float | None = None
    saving: float | None = None

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
