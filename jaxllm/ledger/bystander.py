"""What the processes beside the first have in place of journal and records: the same calls, and nothing is written."""

from typing import Any

import numpy as np

from jaxllm.ledger.chain import origin
from jaxllm.ledger.journal import DIGITS, Event, Journal
from jaxllm.ledger.recorder import Recorder
from jaxllm.ledger.records import StepRecord


class SilentJournal(Journal):
    """A journal in which nothing ever happened."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.head, self.cut = origin(DIGITS), 0

    def append(self, event: str, **fields: Any) -> Event:
        return {"event": event, **fields}

    def close(self) -> None:
        pass


class SilentRecorder(Recorder):
    """A recorder that keeps nothing, and therefore verifies nothing."""

    def __init__(self) -> None:
        self.verified, self.diverged = 0, 0

    @property
    def head(self) -> str:
        return origin(DIGITS)

    def recorded_after(self, step: int) -> list[StepRecord]:
        return []

    def step(self, record: StepRecord, sums: np.ndarray, counts: np.ndarray) -> bool:
        return False

    def durable(self) -> None:
        pass

    def close(self) -> None:
        pass
