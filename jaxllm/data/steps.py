"""Steps as ranges of stream positions. Step k is the k-th update, k = 1..steps; after it the step count is k."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jaxllm.core.errors import RunError


class Batches(Protocol):
    """`steps` updates of `batch_size` sequences each; a stage of the config is one."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class StepSpan(NamedTuple):
    """The positions first..first+size-1 that a step consumes, and the index of its stage."""

    first: int
    size: int
    stage: int


class StepTable:
    """Step <-> positions. The batch size may change between stages."""

    def __init__(self, stages: Sequence[Batches]) -> None:
        self._sizes = [s.batch_size for s in stages]
        self._steps, self._positions = [0], [0]  # before each stage, and in total
        for stage in stages:
            self._steps.append(self._steps[-1] + stage.steps)
            self._positions.append(self._positions[-1] + stage.steps * stage.batch_size)

    @property
    def steps(self) -> int:
        """Updates in all stages."""
        return self._steps[-1]

    @property
    def positions(self) -> int:
        """Positions that all steps consume."""
        return self._positions[-1]

    def span(self, step: int) -> StepSpan:
        """What step 1..steps consumes. RunError for another step."""
        if not 1 <= step <= self.steps:
            raise RunError(f"there is no step {step}; the steps of this run are 1 to {self.steps}")
        stage = bisect.bisect_left(self._steps, step) - 1
        size = self._sizes[stage]
        return StepSpan(self._positions[stage] + (step - 1 - self._steps[stage]) * size, size, stage)

    def consumed(self, step: int) -> int:
        """Positions that the first `step` updates consume together, 0 <= step <= steps: the cursor after `step`."""
        if step == 0:
            return 0
        span = self.span(step)
        return span.first + span.size

    def step_of(self, position: int) -> tuple[int, int]:
        """(step, row) that consumes a position. IndexError outside 0..positions-1."""
        if not 0 <= position < self.positions:
            raise IndexError(f"position {position} does not lie in 0..{self.positions - 1}")
        stage = bisect.bisect_right(self._positions, position) - 1
        index, row = divmod(position - self._positions[stage], self._sizes[stage])
        return self._steps[stage] + index + 1, row

    def stage_start(self, stage: int) -> int:
        """The first step of a stage, by the stage's index."""
        return self._steps[stage] + 1

    def stage_end(self, stage: int) -> int:
        """The last step of a stage, by the stage's index."""
        return self._steps[stage + 1]
