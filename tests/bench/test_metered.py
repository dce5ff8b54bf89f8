"""The loop's cost: work is told from waiting, whoever does it, and what the loop does stays the same."""

import threading
import time
from typing import Any

import pytest

from jaxllm.bench.metered import Meter
from jaxllm.core.errors import RunError
from jaxllm.train.loop import train
from tests.train.test_loop import PLAN, Toy


def burn(seconds: float) -> None:
    """Use up so many CPU seconds in the thread that calls."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


class Busy(Toy):
    """The device takes 40 ms for a step, the loop's thread 10 ms for `record`, another one 30 ms for `batch`."""

    def batch(self, step: int) -> int:
        feed = threading.Thread(target=burn, args=(0.03,))
        feed.start()
        feed.join()
        return super().batch(step)

    def advance(self, state: Any, batch: Any, step: int) -> tuple[Any, Any]:
        self.due = time.perf_counter() + 0.04
        return super().advance(state, batch, step)[0], Pending(step, self.due)

    def record(self, step: int, batch: Any, metrics: Any) -> Any:
        burn(0.01)
        return super().record(step, batch, metrics.step)


class Pending:
    """Metrics of a step that are there later."""

    def __init__(self, step: int, due: float) -> None:
        self.step, self.due = step, due

    def block_until_ready(self) -> "Pending":
        time.sleep(max(0.0, self.due - time.perf_counter()))
        return self


def test_the_loop_does_under_the_meter_what_it_does_without() -> None:
    plain, metered = Toy(), Toy()
    expected = train(PLAN, plain, 0, 0)
    meter = Meter()
    assert meter.drive(PLAN, metered, 0, 0) == expected  # type: ignore[arg-type]
    assert metered.calls == plain.calls and sorted(meter.stretches) == list(range(2, 11))


def test_waiting_costs_nothing_and_other_threads_count() -> None:
    meter = Meter()
    meter.drive(PLAN, Busy(), 0, 0)  # type: ignore[arg-type]
    steps = [3, 4, 8]  # behind no save
    found = meter.loop(steps)
    assert all(meter.stretches[step].waited > 0 for step in steps)
    parts = {part.name: part for part in found.parts}
    assert "device" not in parts and parts["record"].cpu == pytest.approx(0.01, rel=0.3)
    assert parts["batch"].seconds >= 0.03 > 10 * parts["batch"].cpu, "the feed's thread computes, the loop's waits"
    assert 0.01 <= found.own < 0.02 and 0.04 <= found.cpu < 0.06, "by all threads: 10 + 30 ms"
    assert found.seconds >= 0.04


def test_what_was_not_seen_is_no_cost() -> None:
    meter = Meter()
    meter.drive(PLAN, Toy(), 0, 0)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="no two steps"):
        meter.loop([1])
