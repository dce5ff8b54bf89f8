"""Who does what when in a pipeline, as arithmetic: no arrays.

The layers are cut into stages * rounds pieces in their order; piece g is of stage g % stages, in round g // stages. The
sequences are cut into micro-batches, which follow each other through the pieces, one piece per tick: micro-batch n is
in round r at stage p in tick r * micro_batches + n + p.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import Pipeline


@dataclass(frozen=True)
class Schedule:
    """`micro_batches`, a multiple of `stages`, pass `stages` `rounds` times."""

    stages: int
    micro_batches: int
    rounds: int

    @property
    def pieces(self) -> int:
        """Into how many pieces the layers are cut."""
        return self.stages * self.rounds

    @property
    def work(self) -> int:
        """Ticks in which a stage has something to do."""
        return self.micro_batches * self.rounds

    @property
    def ticks(self) -> int:
        """Ticks of a pass over all micro-batches, forwards or backwards."""
        return self.work + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of its time in which a stage has nothing to do."""
        return (self.stages - 1) / self.ticks

    def text(self) -> str:
        """For people: '4 stages, 8 micro-batches, 2 rounds, bubble 15.8%'."""
        rounds = "" if self.rounds == 1 else f", {self.rounds} rounds"
        return f"{self.stages} stages, {self.micro_batches} micro-batches{rounds}, bubble {100 * self.bubble:.1f}%"

    def report(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "ticks": self.ticks, "bubble": self.bubble, "text": self.text()}

    def hops(self) -> list["Hop"]:
        """How pieces get from where the layers lie in order, `rounds` neighbours at each stage, to the stage they are
        of: in each hop every stage sends one piece and receives one."""
        P, R = self.stages, self.rounds
        shared = math.gcd(P, R)
        hops = []
        for hop in range(R):
            # Stages a multiple of P / gcd apart hold pieces of the same stages; each group begins at another slot.
            slots = [(hop + p // (P // shared)) % R for p in range(P)]
            pieces = [p * R + slot for p, slot in enumerate(slots)]
            to = [piece % P for piece in pieces]
            rounds = [0] * P
            for piece, stage in zip(pieces, to, strict=True):
                rounds[stage] = piece // P
            hops.append(Hop(tuple(slots), tuple(to), tuple(rounds)))
        return hops


@dataclass(frozen=True)
class Hop:
    """By stage: the slot of which it sends the piece, where that goes, and of which round the piece is that it gets."""

    slots: tuple[int, ...]
    to: tuple[int, ...]
    rounds: tuple[int, ...]


def schedule_of(pipeline: Pipeline, stages: int, layers: int) -> Schedule:
    """The schedule over `stages` devices. LayoutError if layers or micro-batches do not divide; it says what would."""
    micro_batches = stages if pipeline.micro_batches is None else pipeline.micro_batches
    schedule = Schedule(stages, micro_batches, pipeline.rounds)
    if layers % schedule.pieces:
        fitting = [r for r in range(1, layers // stages + 1) if layers % (stages * r) == 0]
        would_do = f"use compute.pipeline.rounds in {_said(fitting)}, or " if fitting else "use "
        raise LayoutError(
            f"{layers} layers do not divide over pp={stages} x compute.pipeline.rounds={pipeline.rounds}; {would_do}"
            f"mesh.pp x rounds in {_said([n for n in range(1, layers + 1) if layers % n == 0])}"
        )
    if micro_batches % stages:
        below = micro_batches // stages * stages
        raise LayoutError(
            f"compute.pipeline.micro_batches={micro_batches} is not a multiple of pp={stages}, so that stages could "
            f"not share out what comes after the last layer; use {f'{below} or ' if below else ''}{below + stages}"
        )
    return schedule


def _said(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
