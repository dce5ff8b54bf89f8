"""Times, rates and ratios from made-up measurements, whose results are known by hand."""

import dataclasses
from collections.abc import Sequence

import pytest

from configs.bench import m, s
from jaxllm.bench.figures import MARK, Figures, found_in, line
from jaxllm.bench.rounds import race, ratio_of, rows, table
from jaxllm.bench.trained import held_up, saves, undisturbed
from jaxllm.core.errors import ConfigError, RunError
from jaxllm.models.config import SwiGlu
from jaxllm.models.count import flops_per_token

SOME = Figures(
    peer="some",
    versions="some 1.0",
    seconds=(0.5, 2.0, 1.0),
    tokens=4096,
    flops=1e6,
    causal_flops=9e5,
    peak=8192e6,
    first=3.0,
    memory=2**30,
    losses=(9.0, 8.0),
)


def test_figures_of_the_shapes_are_those_counted_by_hand() -> None:
    for run, millions in ((s(), 63.1), (m(), 300.0)):
        model, T = run.model, run.data.seq_len
        assert isinstance(model.ffn, SwiGlu)
        L, D, F, V = model.layers, model.width, model.ffn.width, model.vocab_size
        by_hand = 6 * (L * (4 * D * D + 3 * D * F) + D * V) + 12 * L * D * T
        assert flops_per_token(model, T) == by_hand == pytest.approx(millions * 1e6, rel=2e-3)
        assert run.data.stages[0].batch_size * T == 4096


def test_a_line_is_found_among_others() -> None:
    assert found_in(["compiling ...", line(SOME), ""]) == SOME
    for lines in ([], [line(SOME), line(SOME)]):
        with pytest.raises(RunError, match=f"printed {len(lines)}"):
            found_in(lines)
    with pytest.raises(ConfigError, match="seconds"):
        found_in([MARK + line(SOME)[len(MARK) :].replace("[0.5, 2.0, 1.0]", "[]")])


def test_rates_are_of_the_median_step() -> None:
    assert (SOME.step, SOME.speed, SOME.share, SOME.causal_share) == (1.0, 4096.0, 0.5, 0.45)


def test_steps_beside_a_save_are_not_timed() -> None:
    """One second a step; the save after step 10 takes four more, that after step 20 two."""
    times, now = {}, 100.0
    for step in range(1, 26):
        now += 1.0 + (4.0 if step == 11 else 2.0 if step == 21 else 0.0)
        times[step] = now
    saved = [10, 20]
    assert (
        saves(dataclasses.replace(s(), checkpoints=dataclasses.replace(s().checkpoints, every_steps=10)), 25) == saved
    )
    assert undisturbed(times, 3, 25, saved) == [*range(4, 10), *range(12, 20), *range(22, 26)]
    assert undisturbed(times, 3, 25, saved, behind=3) == [*range(4, 10), *range(14, 20), 24, 25]
    del times[15]
    assert undisturbed(times, 3, 18, saved) == [*range(4, 10), 12, 13, 14, 17, 18]
    times[15] = times[14] + 1.0
    assert held_up(times, saved) == pytest.approx(2.0)
    assert held_up(times, [10]) is None


def test_contenders_take_turns_and_are_held_against_the_first() -> None:
    order: list[str] = []

    def execute(command: Sequence[str]) -> Figures:
        """The machine slows down by half after the first round; b takes twice as long as a."""
        order.append(command[0])
        slow = 1.0 if len(order) <= 2 else 2.0
        return dataclasses.replace(SOME, seconds=(slow * {"a": 1.0, "b": 2.0}[command[0]],))

    found = race({"A": ["a"], "B": ["b"]}, 3, execute=execute)
    assert order == ["a", "b"] * 3
    first, second = rows(found)
    assert first.ratio.median == first.ratio.low == first.ratio.high == 1.0
    assert (second.ratio.low, second.ratio.median, second.ratio.high) == (0.5, 0.5, 0.5), "slower together"
    assert (first.slowest, first.speed, first.fastest) == (2048.0, 2048.0, 4096.0)
    said = table([first, second])
    assert said[3].startswith("| B | 1,024 (1,024 to 2,048) |") and "0.50 (0.50 to 0.50)" in said[3]


def test_how_sure_a_range_is() -> None:
    assert ratio_of([1.0]).covered == 0.0
    assert ratio_of([1.0, 1.2, 0.9, 1.1, 1.3]).covered == 1 - 2 / 2**5
