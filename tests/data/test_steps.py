"""Steps are ranges of positions that cover the stream once, and each position knows its step."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.core.errors import RunError
from jaxllm.data.steps import StepTable


@dataclass(frozen=True)
class Part:
    steps: int
    batch_size: int


parts = st.lists(st.builds(Part, steps=st.integers(1, 9), batch_size=st.integers(1, 7)), min_size=1, max_size=4)


@given(parts)
def test_steps_tile_the_stream(stages: list[Part]) -> None:
    table = StepTable(stages)
    seen: list[int] = []
    step = 0
    for i, stage in enumerate(stages):
        assert table.stage_start(i) == step + 1
        for _ in range(stage.steps):
            step += 1
            span = table.span(step)
            assert (span.first, span.size, span.stage) == (len(seen), stage.batch_size, i)
            assert table.consumed(step - 1) == span.first
            assert [table.step_of(span.first + row) for row in range(span.size)] == [
                (step, row) for row in range(span.size)
            ]
            seen += [step] * span.size
    assert table.steps == step
    assert table.positions == table.consumed(step) == len(seen)


def test_steps_that_are_not_there() -> None:
    table = StepTable([Part(3, 4), Part(2, 8)])
    for step in (0, -1, 6):
        with pytest.raises(RunError, match=f"no step {step}; the steps of this run are 1 to 5"):
            table.span(step)
    for position in (-1, 28):
        with pytest.raises(IndexError):
            table.step_of(position)


def test_steps_are_counted_from_one() -> None:
    """The first update is step 1, and it reads from position 0."""
    assert tuple(StepTable([Part(3, 4)]).span(1)) == (0, 4, 0)
    assert StepTable([Part(3, 4)]).step_of(11) == (3, 3)
