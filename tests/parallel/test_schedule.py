"""The schedule of a pipeline, held against playing it: who has what when, and which layers lie where."""

import pytest

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import Pipeline
from jaxllm.parallel.schedule import Schedule, schedule_of

SIZES = [Schedule(P, N, R) for P in (1, 2, 3, 4, 6, 8) for N in (P, 2 * P) for R in (1, 2, 3, 4, 8)]


@pytest.mark.parametrize("schedule", SIZES, ids=str)
def test_every_micro_batch_passes_the_pieces_in_order(schedule: Schedule) -> None:
    P, N = schedule.stages, schedule.micro_batches
    passed: dict[int, list[int]] = {n: [] for n in range(N)}
    idle = 0
    for tick in range(schedule.ticks):
        for stage in range(P):
            since = tick - stage
            if not 0 <= since < schedule.work:
                idle += 1
                continue
            turn, n = divmod(since, N)
            piece = turn * P + stage
            # It left the piece before in an earlier tick.
            assert passed[n] == list(range(piece))
            passed[n].append(piece)
    assert all(pieces == list(range(schedule.pieces)) for pieces in passed.values())
    assert idle / (P * schedule.ticks) == pytest.approx(schedule.bubble)


@pytest.mark.parametrize("schedule", SIZES, ids=str)
def test_hops_bring_every_piece_to_its_stage(schedule: Schedule) -> None:
    P, R = schedule.stages, schedule.rounds
    lies = [list(range(p * R, (p + 1) * R)) for p in range(P)]
    found: list[list[int | None]] = [[None] * R for _ in range(P)]
    for hop in schedule.hops():
        assert sorted(hop.to) == list(range(P))  # each stage sends one and receives one
        for p in range(P):
            to = hop.to[p]
            found[to][hop.rounds[to]] = lies[p][hop.slots[p]]
    assert found == [[turn * P + p for turn in range(R)] for p in range(P)]


def test_more_micro_batches_and_rounds_idle_less() -> None:
    assert Schedule(4, 4, 1).bubble == pytest.approx(3 / 7)
    assert Schedule(4, 16, 1).bubble == pytest.approx(3 / 19)
    assert Schedule(4, 16, 4).bubble == pytest.approx(3 / 67)
    assert Schedule(4, 8, 2).text() == "4 stages, 8 micro-batches, 2 rounds, bubble 15.8%"


def test_what_does_not_divide_is_refused_with_what_would() -> None:
    assert schedule_of(Pipeline(), 4, 8) == Schedule(4, 4, 1)
    with pytest.raises(LayoutError, match=r"6 layers .* pp=4 x .*rounds=1; use mesh.pp x rounds in 1, 2, 3, 6"):
        schedule_of(Pipeline(), 4, 6)
    with pytest.raises(LayoutError, match=r"8 layers .* pp=2 x .*rounds=3; use compute.pipeline.rounds in 1, 2, 4, or"):
        schedule_of(Pipeline(rounds=3), 2, 8)
    with pytest.raises(LayoutError, match=r"micro_batches=3 is not a multiple of pp=4, .*; use 4$"):
        schedule_of(Pipeline(micro_batches=3), 4, 8)
    with pytest.raises(LayoutError, match=r"micro_batches=6 .*; use 4 or 8$"):
        schedule_of(Pipeline(micro_batches=6), 4, 8)
