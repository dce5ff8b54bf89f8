"""What observers write: lines for programs, whole ones, that say what they repeat."""

import json
from pathlib import Path

import numpy as np

from jaxllm.ledger.records import StepRecord
from jaxllm.ledger.scores import Score
from jaxllm.train.observe import Experts, MetricsFile, Observation


def seen(step: int, loss: float = 2.5, norm: float = 1.0, experts: Experts | None = None) -> Observation:
    record = StepRecord.of_values(
        lineage=0,
        step=step,
        cursor=step * 4,
        stage="one",
        sequences=4,
        tokens=32,
        loss=np.float32(loss),
        grad_norm=np.float32(norm),
        lr=np.float32(0.5),
        batch="0" * 16,
        losses="0" * 16,
        refused=False,
    )
    return Observation(
        record=record,
        time=1_700_000_000.1239,
        seconds_per_step=None,
        tokens_per_second=None,
        tokens_per_second_per_device=None,
        mfu=None,
        waiting_share=0.0,
        norms={"grad": {"embed": np.float32(norm), "blocks.q": np.array([norm, 2.0], np.float32)}},
        experts=experts,
    )


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_process_says_where_it_starts_and_cuts_what_a_kill_left(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, 1, 0)
    for step in (1, 2, 3):
        first.stepped(seen(step))
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"time": 3.1, "step"')
    second = MetricsFile(tmp_path, 1, 2)
    second.stepped(seen(3))
    second.saved(3)
    second.close()
    told = [line.get("step", ("starts_after", line.get("starts_after"))) for line in lines(tmp_path)]
    assert told == [("starts_after", 0), 1, 2, 3, ("starts_after", 2), 3]


def test_json_has_no_nan(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 1, 0)
    file.stepped(seen(1, loss=float("nan"), norm=float("inf")))
    file.evaluated(1, [Score(source="a", nats_per_token=float("nan"), bits_per_byte=float("inf"), tokens=3)])
    file.close()
    _, step, score = lines(tmp_path)
    assert step["loss"] is None and step["norms"] == {"grad": {"embed": None, "blocks.q": [None, 2.0]}}
    assert score["nats_per_token"] is None and score["bits_per_byte"] is None


def test_how_busy_experts_were_is_said_of_every_layer(tmp_path: Path) -> None:
    loads_LE, penalty_B = np.array([[6, 2, 4], [0, 0, 12]], np.int32), np.array([0.5, 1.5], np.float32)
    experts = Experts.of(loads_LE, penalty_B)
    file = MetricsFile(tmp_path, 1, 0)
    file.stepped(seen(1))
    file.stepped(seen(2, experts=experts))
    file.close()
    _, without, with_them = lines(tmp_path)
    assert "experts" not in without
    assert with_them["experts"] == {"busiest": [1.5, 3.0], "idlest": [0.5, 0.0], "penalty": 1.0}


def test_a_line_has_the_time_at_which_its_step_was_finished(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path, 1, 0)
    metrics.stepped(seen(1))
    metrics.close()
    assert lines(tmp_path)[-1]["time"] == 1_700_000_000.124
