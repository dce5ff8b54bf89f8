"""The judge, on records made by hand: what it calls a spike, what it does, and that a restart changes no verdict."""

import dataclasses
import itertools
import math
from typing import Any

import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.ledger.records import StepRecord
from jaxllm.train.config import Guard, Refuse, Rewind, Spikes
from jaxllm.train.guard import Back, Decision, Judge, Keep, Stop, lookback, went_back
from jaxllm.train.spikes import limit_of

SPIKES = Spikes(window=16, min_history=8, recover_within=3, action=Rewind(data="skip_batch"))
GUARD = Guard(spikes=SPIKES, max_refused=3, max_rollbacks=2, rollbacks_within=100)
USUAL = itertools.cycle([2.0, 2.1, 1.9, 2.05])


def record(step: int, loss: float | None = None, norm: float | None = 0.5, *, nan: bool = False) -> StepRecord:
    import numpy as np

    value = math.nan if nan else (next(USUAL) if loss is None else loss)
    return StepRecord.of_values(
        lineage=0,
        step=step,
        cursor=8 * (step - 1),
        stage="s",
        sequences=8,
        tokens=64,
        loss=np.float32(value),
        grad_norm=np.float32(math.nan if nan or norm is None else norm),
        lr=np.float32(0.1),
        batch="0" * 16,
        losses="0" * 16,
        refused=nan,
    )


def judged(policy: Guard, records: list[StepRecord], events: list[Any] | None = None) -> list[Decision]:
    judge = Judge(policy, (), went_back(events or []))
    return [judge.judge(r) for r in records]


def run_with(high: dict[int, float], steps: int = 40) -> list[StepRecord]:
    return [record(s, high.get(s)) for s in range(1, steps + 1)]


def test_the_limit_is_median_plus_deviations_and_never_the_last_digits() -> None:
    assert limit_of([1, 2, 3, 4, 100], 2.0) == 3 + 2 * 1
    assert limit_of([2.0] * 9, 10.0) == pytest.approx(2.2)


def test_a_spike_that_recovers_is_benign() -> None:
    verdicts = judged(GUARD, run_with({20: 9.0, 21: 9.0}))
    assert all(isinstance(v, Keep) for v in verdicts)
    notes = {s: [n.event for n in v.notes] for s, v in enumerate(verdicts, 1) if v.notes}
    assert notes == {20: ["spike"], 22: ["recovered"]}
    assert verdicts[21].notes[0].fields == {"step": 22, "spike": 20}


def test_a_spike_that_lasts_is_malignant_and_began_where_it_began() -> None:
    verdicts = judged(GUARD, run_with(dict.fromkeys(range(20, 30), 9.0)))
    first = next(v for v in verdicts if not isinstance(v, Keep))
    assert isinstance(first, Back) and (first.first, first.last, first.data) == (20, 23, "skip_batch")
    assert "loss was 9 at step 23" in first.why and "step 20" in first.why


def test_nothing_is_judged_before_there_is_a_history() -> None:
    assert all(v == Keep() for v in judged(GUARD, run_with({5: 50.0}, steps=8)))


def test_the_gradient_norm_is_judged_too() -> None:
    records = [record(s, norm=80.0 if s == 30 else 0.5) for s in range(1, 41)]
    (note,) = [n for v in judged(GUARD, records) for n in v.notes if n.event == "spike"]
    assert (note.fields["step"], note.fields["signal"]) == (30, "grad_norm")


def test_a_loss_that_is_not_finite_is_acted_on_as_asked() -> None:
    records = [record(s, nan=s in (20, 21, 22)) for s in range(1, 31)]
    verdicts = judged(GUARD, records)
    assert [n.fields["signal"] for n in verdicts[19].notes] == ["non_finite"]
    stop = next(v for v in verdicts if isinstance(v, Stop))
    assert verdicts.index(stop) == 21 and "3 updates in a row were refused, the last at step 22" in stop.why
    back = judged(dataclasses.replace(GUARD, non_finite=Rewind(data="replay")), records)[19]
    assert isinstance(back, Back) and (back.first, back.data) == (20, "replay")


def test_it_goes_back_so_often_and_no_more() -> None:
    events = [{"event": "rollback", "last": s, "by": "guard"} for s in (5, 15)]
    spiking = run_with(dict.fromkeys(range(20, 30), 9.0))
    assert any(isinstance(v, Stop) and "went back 2 times" in v.why for v in judged(GUARD, spiking, events))
    by_hand = [{**e, "by": "person"} for e in events]
    assert any(isinstance(v, Back) for v in judged(GUARD, spiking, by_hand))
    short = dataclasses.replace(GUARD, rollbacks_within=10)
    assert any(isinstance(v, Back) for v in judged(short, spiking, events))


@pytest.mark.parametrize("start", range(17, 44))
def test_a_judge_that_was_told_the_last_records_comes_to_the_same_verdicts(start: int) -> None:
    records = run_with({12: 9.0, 19: 9.0, 20: 9.0, 22: 9.0, **dict.fromkeys(range(33, 40), 9.0)}, steps=48)
    for step in (14, 15, 21, 25, 35):
        records[step - 1] = record(step, nan=True)
    whole = judged(GUARD, records)
    known = records[max(0, start - lookback(GUARD)) : start]
    judge = Judge(GUARD, known)
    assert [judge.judge(r) for r in records[start:]] == whole[start:]


@pytest.mark.parametrize("lag", [1, 3])
def test_the_limit_of_an_update_does_not_depend_on_how_much_was_judged_meanwhile(lag: int) -> None:
    guard = dataclasses.replace(GUARD, lag=lag, spikes=dataclasses.replace(SPIKES, action=Refuse()))
    records = [record(s, norm=0.5 + 0.01 * (s % 7)) for s in range(1, 40)]
    late, early = Judge(guard, records[: 39 - lag]), Judge(guard, records)
    assert late.norm_limit(40) == early.norm_limit(40) < math.inf
    assert late.norm_limit(40) == Judge(guard, records[-16 - lag :]).norm_limit(40), "by no more than the window"
    assert Judge(GUARD, records).norm_limit(40) == math.inf


@pytest.mark.parametrize(
    "fields",
    [{"min_history": 20}, {"loss_mads": None, "norm_mads": None}, {"norm_mads": None, "action": Refuse()}],
)
def test_policies_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SPIKES, **fields)


def test_refuse_says_what_it_did() -> None:
    guard = dataclasses.replace(GUARD, spikes=dataclasses.replace(SPIKES, action=Refuse()))
    high_loss = judged(guard, run_with({30: 9.0}))[29].notes[0].fields
    assert (high_loss["signal"], high_loss["action"]) == ("loss", "warn")
    records = [record(s, norm=80.0 if s == 30 else 0.5) for s in range(1, 41)]
    records[29] = dataclasses.replace(records[29], refused=True)
    high_norm = judged(guard, records)[29].notes[0].fields
    assert (high_norm["signal"], high_norm["action"]) == ("grad_norm", "refuse")
    assert high_norm["limit"] == Judge(guard, records[:29]).norm_limit(30), "what the device was told"
