"""The published runs of configs/ against what was published of them: sizes, tokens, learning rates. Exit code 1 on a
miss.

    python tools/runs_table.py

Published figures are as the sources print them; `within` is what their last digit allows, unless a note says more.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxllm.core.dims import Role
from jaxllm.core.load import call_config
from jaxllm.models.count import parameters
from jaxllm.optim.schedule import learning_rate
from jaxllm.run import RunConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Fact:
    """One published number of a run, and how far, relatively, ours may lie from it."""

    what: str
    published: float
    ours: Callable[[RunConfig], float]
    within: float = 0.0

    def holds(self, run: RunConfig) -> bool:
        """True if ours is the published one."""
        return abs(self.ours(run) - self.published) <= self.within * abs(self.published)


def _size(published: float, within: float = 1e-4) -> Fact:
    return Fact("parameters", published, lambda run: parameters(run.model), within)


def _steps(published: int) -> Fact:
    return Fact("steps", published, lambda run: run.steps)


def _batch(published: float, within: float = 0.0) -> Fact:
    return Fact("tokens per step", published, lambda run: run.tokens / run.steps, within)


def _tokens(published: float, within: float) -> Fact:
    return Fact("tokens", published, lambda run: run.tokens, within)


def _rate(step: int, published: float, within: float = 1e-7, role: Role | None = None) -> Fact:
    """The learning rate at an update: a float32, hence `within`."""

    def ours(run: RunConfig) -> float:
        factors = {m.role: m.value for m in run.optimizer.lr_multipliers}
        return learning_rate(run.optimizer.schedule, step) * (factors.get(role, 1.0) if role else 1.0)

    return Fact(f"learning rate at {step:,}{f' ({role})' if role else ''}", published, ours, within)


# "file:function" in configs/ -> what was published.
PUBLISHED: dict[str, tuple[Fact, ...]] = {
    "amber_7b:amber_7b": (
        _size(6_738_415_616, 0.0),
        _steps(274_320),
        _batch(4.588e6, 2e-4),
        _tokens(1.2585e12, 1e-4),  # the card's sum of sources is 1,259.13 billion
        _rate(0, 0.0),
        _rate(2_000, 3e-4),
        _rate(274_320, 3e-5),
    ),
    "crystal_7b:phase1": (
        _size(6.575e9, 2e-4),
        _steps(79_721),
        _batch(4.325e6, 2e-4),
        _tokens(344.8e9, 2e-4),
        _rate(86, 0.012),
        _rate(86, 7.5e-4, role="matrix"),
        _rate(79_721, 0.0087869, 1e-5),
        _rate(86 + 294_337, 0.00012408),  # never reached
    ),
    "crystal_7b:phase2": (
        _size(6.575e9, 2e-4),
        _steps(214_387),
        _batch(4.325e6, 2e-4),
        _tokens(927.3e9, 2e-4),
        _rate(0, 0.0),
        _rate(86, 0.0087825),
        _rate(86, 0.0087825 * 0.0625, role="matrix"),
        _rate(214_387, 0.00013679),
    ),
    "crystal_7b:phase3": (
        _size(6.575e9, 2e-4),
        _steps(27_728),
        _batch(4.325e6, 2e-4),
        _tokens(119_931_863_040, 2e-5),  # half a step less than 27,728 of them
        _rate(0, 0.0),
        _rate(276, 0.002),
        _rate(276, 0.002 * 0.0625, role="matrix"),
        _rate(27_728, 0.0002),
    ),
    "k2_65b:stage1": (
        _size(65.286e9),
        _steps(338_760),
        _batch(4.178e6, 1e-4),
        _tokens(1.4153e12, 1e-4),  # the card says 1.3 and 1.4 trillion
        _rate(0, 0.0),
        _rate(2_000, 1.5e-4),
        _rate(338_760, 1.5e-5),
    ),
    "k2_65b:stage2": (
        _size(65.286e9),
        _tokens(69.4e9, 1e-3),
    ),
    "slimpajama_dc_1b3:slimpajama_dc_1b3": (
        _size(1.311e9, 1e-3),  # counted without biases, which are 0.7 million
        _tokens(330e9, 1e-5),
    ),
    "dmas_llama_lite_1b7:dmas_llama_lite_1b7": (
        _size(1.716e9, 3e-4),
        _steps(43_500),
        _batch(524_288),
        _tokens(22.8e9, 1e-3),  # at the script's default batch; the card says about 20
        _rate(0, 0.0),
        _rate(715, 6e-4),
        _rate(43_500, 6e-5),
    ),
}


def config(name: str) -> RunConfig:
    """What "file:function" of configs/ returns."""
    file, _, function = name.partition(":")
    run: RunConfig = call_config(f"{CONFIGS / file}.py:{function}")
    return run


def misses(name: str, run: RunConfig, facts: Sequence[Fact]) -> list[str]:
    """What does not hold, as a line each."""
    return [
        f"{name}: {f.what} is {_shown(f.ours(run))}, published {_shown(f.published)}" for f in facts if not f.holds(run)
    ]


def _shown(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.7g}"


def main() -> int:
    console, missed = Console(width=120), list[str]()
    table = Table("config", "what", "published", "ours", "", box=None, pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for name, facts in PUBLISHED.items():
        run = config(name)
        for i, fact in enumerate(facts):
            verdict = "ok" if fact.holds(run) else "[bold red]MISS"
            table.add_row(name if i == 0 else "", fact.what, _shown(fact.published), _shown(fact.ours(run)), verdict)
        missed += misses(name, run, facts)
    console.print(table)
    for line in missed:
        console.print(line, style="bold red")
    console.print(f"{sum(map(len, PUBLISHED.values()))} published figures, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
