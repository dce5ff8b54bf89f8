"""Contenders in turns, A B C A B C, so that a machine that slows down slows all of them. No jax."""

import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxllm.bench.figures import Figures, found_in
from jaxllm.core.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as the first contender, round by round: the median and all that was seen. covered: how
    sure that is to hold the median of endless rounds, whatever their distribution."""

    median: float
    low: float
    high: float
    covered: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contender over all rounds: medians, and the range of the speed."""

    name: str
    rounds: int
    speed: float
    slowest: float
    fastest: float
    share: float
    memory: int
    first: float
    loss: float
    ratio: Ratio


def race(
    contenders: Mapping[str, Sequence[str]],
    rounds: int,
    *,
    said: Callable[[str], None] = lambda line: None,
    execute: Callable[[Sequence[str]], Figures] | None = None,
) -> dict[str, list[Figures]]:
    """The figures of every contender by round. Commands print a line of figures (`figures.line`)."""
    execute = executed if execute is None else execute
    found: dict[str, list[Figures]] = {name: [] for name in contenders}
    for i in range(rounds):
        for name, command in contenders.items():
            figures = execute(command)
            found[name].append(figures)
            said(f"round {i + 1} of {rounds}: {name}: {figures.speed:,.0f} tokens/s, {figures.share:.0%} of the peak")
    return found


def executed(command: Sequence[str]) -> Figures:
    """The figures of a command. RunError: it failed, or printed none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"{' '.join(command)} left with {done.returncode}: {last}")
    return found_in(done.stdout.splitlines())


def rows(found: Mapping[str, Sequence[Figures]]) -> list[Row]:
    """A row for each contender; ratios are against the first one, of the same round."""
    base = next(iter(found.values()))
    return [
        Row(
            name=name,
            rounds=len(each),
            speed=statistics.median(f.speed for f in each),
            slowest=min(f.speed for f in each),
            fastest=max(f.speed for f in each),
            share=statistics.median(f.share for f in each),
            memory=max(f.memory for f in each),
            first=statistics.median(f.first for f in each),
            loss=each[-1].losses[1],
            ratio=ratio_of([f.speed / b.speed for f, b in zip(each, base, strict=True)]),
        )
        for name, each in found.items()
    ]


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """From those of single rounds. All of n lie on one side of the median with probability 2^(1 - n)."""
    return Ratio(
        median=statistics.median(ratios), low=min(ratios), high=max(ratios), covered=1 - 2.0 ** (1 - len(ratios))
    )


def table(found: Sequence[Row]) -> list[str]:
    """In Markdown."""
    said = [
        "| | tokens/s, median (range) | of the peak | times the first, median (range) | memory, GiB | first step, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        r = row.ratio
        said.append(
            f"| {row.name} | {row.speed:,.0f} ({row.slowest:,.0f} to {row.fastest:,.0f}) | {row.share:.0%} "
            f"| {r.median:.2f} ({r.low:.2f} to {r.high:.2f}) | {row.memory / 2**30:.2f} | {row.first:.1f} |"
        )
    covered = found[0].ratio.covered
    return [*said, "", f"{found[0].rounds} rounds; a range holds the median of endless ones with {covered:.0%}."]
