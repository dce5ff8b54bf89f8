"""Classes of agreement, on records made by hand."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from jaxllm.core.floats import float32_bits
from jaxllm.ledger.records import StepRecord
from jaxllm.release.agreement import Agreement, satisfies
from jaxllm.release.deviation import ArrayDeviation, ItemDeviation, StateDeviation


def record(step: int, loss: float = 2.0, norm: float = 0.5, **more: Any) -> StepRecord:
    made = StepRecord.of_values(
        lineage=0,
        step=step,
        cursor=8 * step,
        stage="s",
        sequences=8,
        tokens=64,
        loss=np.float32(loss),
        grad_norm=np.float32(norm),
        lr=np.float32(0.1),
        batch="b" * 16,
        losses="l" * 16,
        refused=False,
    )
    return dataclasses.replace(made, **more)


def held(*pairs: tuple[StepRecord, StepRecord], compute: str = "float32") -> Agreement:
    agreement = Agreement(compute)
    for a, b in pairs:
        agreement.hold(a, b)
    return agreement


def test_equal_records_are_bitwise_and_another_state_is_not() -> None:
    agreement = held((record(1), record(1)), (record(2), record(2)))
    assert agreement.found == "bitwise" and agreement.steps == 2 and agreement.largest == {}
    agreement.hold_state(2, None)
    assert agreement.found == "bitwise"
    agreement.hold_state(2, StateDeviation(step=2, after=2, unread="gone"))
    assert str(agreement.found) == "rounding" and agreement.first == (2, ["state digest"])


@pytest.mark.parametrize(
    "item, relative, after, compute, found",
    [
        ("params", 1.5e-6, 1, "float32", "rounding"),
        ("params", 2.5e-6, 1, "float32", "different"),
        ("params", 2.5e-6, 2, "float32", "rounding"),
        ("opt", 2.5e-6, 1, "float32", "rounding"),
        ("ema", 2.5e-6, 1, "float32", "different"),
        ("opt", 1.1e-5, 1, "float32", "different"),
        ("params", 2.5e-6, 1, "bfloat16", "rounding"),
        ("params", math.inf, 1000, "bfloat16", "different"),
    ],
)
def test_a_state_may_be_off_by_what_rounding_grows_to(
    item: str, relative: float, after: int, compute: str, found: str
) -> None:
    furthest = ArrayDeviation(name=f"{item}.a", relative=relative, largest=1.0, ulp=3)
    near = ItemDeviation(item="params", arrays=1, differing=0, furthest=None)
    agreement = Agreement(compute)
    off = ItemDeviation(item=item, arrays=2, differing=1, furthest=furthest)
    agreement.hold_state(5, StateDeviation(step=5, after=after, items=(near, off)))
    assert agreement.found == found
    assert found == "rounding" or (agreement.broken is not None and f"{item}.a is off" in agreement.broken[1])


def test_rounding_is_told_in_ulp_and_where() -> None:
    near = np.nextafter(np.float32(2.0), np.float32(3.0))
    far = near + np.float32(1e-6)
    agreement = held((record(1), record(1, near)), (record(2), record(2, far)))
    assert agreement.found == "rounding"
    largest = agreement.largest["loss"]
    assert (
        largest.step == 2
        and largest.ulp == 1 + round(1e-6 / 2**-22)
        and largest.relative == pytest.approx(6e-7, rel=0.1)
    )


@pytest.mark.parametrize("compute, off, found", [("float32", 1e-5, "different"), ("bfloat16", 1e-5, "rounding")])
def test_the_first_loss_decides_by_the_type_of_products(compute: str, off: float, found: str) -> None:
    assert held((record(1), record(1, 2.0 * (1 + off))), compute=compute).found == found


def test_later_losses_may_drift_as_they_do() -> None:
    assert held((record(1), record(1)), (record(2), record(2, 2.5))).found == "rounding"


@pytest.mark.parametrize(
    "name, value", [("batch", "x" * 16), ("refused", True), ("lr_bits", float32_bits(np.float32(1)))]
)
def test_what_is_exact_has_no_rounding(name: str, value: Any) -> None:
    agreement = held((record(1), record(1)), (record(2), record(2, **{name: value})))
    assert agreement.found == "different"
    assert agreement.broken is not None and agreement.broken[0] == 2 and name in agreement.broken[1]
    assert agreement.of_data == (name == "batch")


def test_a_loss_that_is_no_number_now_is_different() -> None:
    assert held((record(1), record(1, float("nan")))).found == "different"


def test_a_better_class_satisfies_a_worse_one() -> None:
    assert satisfies("bitwise", "rounding") and satisfies("rounding", "rounding")
    assert not satisfies("rounding", "bitwise") and not satisfies("different", "rounding")
