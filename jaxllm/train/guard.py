"""What to do about a step once its numbers are known. No jax: a policy is a function of records.

The step itself refuses a non-finite update on the device, so a judgement may come late without harm.
"""

from dataclasses import dataclass, field

from jaxllm.ledger.records import StepRecord
from jaxllm.train.config import Guard


@dataclass(frozen=True)
class Keep:
    """The step stands."""


@dataclass(frozen=True)
class Stop:
    """The run cannot go on by itself."""

    why: str


Decision = Keep | Stop


@dataclass
class Judge:
    """Counts refused updates in a row. A resumed process is told how many there were before it, so that kills do not
    change the verdict."""

    policy: Guard
    refused_in_a_row: int = field(default=0)

    def judge(self, record: StepRecord) -> Decision:
        """One judgement per step, in order."""
        self.refused_in_a_row = self.refused_in_a_row + 1 if record.refused else 0
        if self.refused_in_a_row >= self.policy.max_refused:
            return Stop(
                f"{self.refused_in_a_row} updates in a row were not finite, the last at step {record.step}; "
                f"lower the learning rate or look at the data: jaxllm data step RUN {record.step}"
            )
        return Keep()
