"""Two runs held against each other: where they part is where their records say so, in text, JSON and the page."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from configs.debug import debug
from jaxllm.compare.heldout import Pair, compare_scores
from jaxllm.compare.lines import lines, score_words, span_words
from jaxllm.compare.page import page, write_comparison
from jaxllm.compare.steps import append_step
from jaxllm.compare.values import Comparison, as_json, compare_runs
from jaxllm.core.config import encode, override
from jaxllm.core.errors import RunError
from jaxllm.core.files import make_folder, write_json_atomic
from jaxllm.core.floats import float32_of
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.records import StepLog, StepRecord
from jaxllm.report.chart import Line, chart
from jaxllm.report.scale import scale_of
from jaxllm.report.speeds import HeldOut
from jaxllm.report.thin import Point
from tests.report.test_report import EVIL, seen

ULP = float32_of("40000001")  # the float32 after 2.0


def made(
    folder: Path, losses: Sequence[float], *assignments: str, batch: int = 99, scores: Sequence[float] = ()
) -> Path:
    """A run of as many steps; from step `batch` on of other data; scored after every other step."""
    make_folder(folder)
    write_json_atomic(folder / "run.json", encode(override(replace(debug(), name=folder.name), assignments)))
    with Journal(folder / "journal.jsonl") as journal:
        journal.append("start", lineage=0, identity="1" * 64, fingerprint="2" * 64, fence=1, environment=None)
    with StepLog(folder / "steps") as log:
        for step, loss in enumerate(losses, 1):
            log.append(
                StepRecord.of_values(
                    lineage=0,
                    step=step,
                    cursor=8 * (step - 1),
                    stage="first",
                    sequences=8,
                    tokens=512,
                    loss=loss,
                    grad_norm=0.5,
                    lr=0.25,
                    batch=f"{step >= batch:016d}",
                    losses="0" * 16,
                    refused=False,
                )
            )
    text = [{"time": 1.0, "starts_after": 0}]
    for n, score in enumerate(scores, 1):
        text.append(
            {"time": 2.0, "step": 2 * n, "heldout": "prose", "nats_per_token": 2 * score, "bits_per_byte": score}
            | {"tokens": 512}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in text))
    return folder


@pytest.fixture
def apart(tmp_path: Path) -> Comparison:
    """Equal up to step 3, by one ulp apart at step 4, other data from step 5 on, not finite at step 6."""
    one = made(tmp_path / "one", (2.0,) * 6, scores=(3.5, 3.25, 3.0))
    losses = (2.0, 2.0, 2.0, ULP, 4.0, math.inf, 2.0)
    two = made(tmp_path / "two", losses, "optimizer.clip_norm=0.5", batch=5, scores=(3.5, 3.25, 3.125))
    return compare_runs(one, two)


def test_where_they_part_is_said(apart: Comparison) -> None:
    found = as_json(apart)
    assert json.loads(json.dumps(found))["runs"] == found["runs"]
    assert found["steps"] == {"common": 6, "only_first": 0, "only_second": 1}
    assert found["first_difference"] == {"data": 5, "loss": 4, "gradient norm": None, "learning rate": None}
    assert found["steps_with_other_data"] == {"count": 2, "spans": [(5, 6)]}
    assert found["largest"]["loss"]["relative"] == 1.0 and found["class"] == "different"
    assert found["rows"] is None and "pinned" in found["untold"], "no store, and it says so"
    assert [p.value for p in apart.held.off.points("loss")] == [
        0.0,
        0.0,
        0.0,
        pytest.approx(1.19e-7, rel=0.01),
        1.0,
        None,
    ]
    said = "\n".join(lines(apart))
    assert "optimizer.clip_norm: 1.0 -> 0.5" in said and "loss: other from step 4 on" in said
    assert "other data in 2 common steps: 5-6" in said


def test_held_out_scores_are_held_against_each_other(apart: Comparison) -> None:
    (found,) = apart.scores
    assert (found.common, found.only_first, found.only_second, found.first_difference) == (3, 0, 0, 6)
    assert found.largest == found.last == Pair(step=6, first=3.0, second=3.125)
    assert any("prose: other from step 6 on, at most by 0.12 (step 6)" in line for line in lines(apart))


def score(step: int, value: float | None, labels: int = 512) -> HeldOut:
    return HeldOut(step=step, source="prose", labels=labels, nats_per_token=value, bits_per_byte=value)


@pytest.mark.parametrize(
    "theirs, words",
    [
        ([score(2, 3.0), score(4, 2.0)], "equal at all 2 common steps"),
        ([score(6, 3.0)], "no common step has a score of both"),
        ([score(2, 3.0, labels=256)], "different numbers of labels"),
        ([score(2, None)], "other from step 2 on; at step 2 3.000000 and not finite"),
    ],
)
def test_scores_are_compared_where_they_can_be(theirs: list[HeldOut], words: str) -> None:
    (found,) = compare_scores([score(2, 3.0), score(4, 2.0)], theirs)
    assert words in score_words(found)


def test_runs_of_no_common_step_have_no_class(tmp_path: Path) -> None:
    one, empty = made(tmp_path / "one", (2.0,)), made(tmp_path / "empty", ())
    with pytest.raises(RunError, match="empty has no step"):
        compare_runs(one, empty)
    same = compare_runs(one, one)
    assert same.class_ == "bitwise" and "equal in all common steps" in page(same)


def test_the_page_shows_both_and_what_lies_between_them(apart: Comparison, tmp_path: Path) -> None:
    text = page(apart)
    found = seen(text)
    assert not {"script", "link", "img", "iframe"} & set(found.tags) and not found.odd
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    for words in ("one step 4: 2<", "two step 5: 4<", "step 4: 1.19e-07<", "step 3: 0<", "step 6: not finite"):
        assert words in text
    assert "step 4: loss</li>" in text and "step 5: data</li>" in text, "marks are named"
    assert "prose: held-out bits per byte" in text and "two step 6: 3.125<" in text
    assert '<td>optimizer.clip_norm</td><td class="h">1.0 -&gt; 0.5</td>' in text
    out = tmp_path / "page.html"
    write_comparison(apart, out)
    assert out.read_text(encoding="utf-8") == text
    with pytest.raises(RunError, match="name a file in a folder that exists"):
        write_comparison(apart, tmp_path / "nowhere" / "page.html")


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    one, two = (made(tmp_path / name, (2.0,)) for name in ("one", "two"))
    raw = json.loads((two / "run.json").read_text())
    raw["name"], raw["data"]["stages"][0]["name"] = EVIL.replace("/", "|"), EVIL
    write_json_atomic(two / "run.json", raw)
    text = page(compare_runs(one, two))
    assert "<script" not in text and "alert(1)" in text


def test_rounding_large_differences_and_equality_are_told_apart_on_one_scale() -> None:
    values = [0.0, 1e-7, -2e-7, 0.5]
    axis = scale_of("signed", values, everything=values, zero=False)
    heights = [axis.at(v) for v in (-2e-7, -1e-7, 0.0, 1e-7, 2e-7, 1e-3, 0.5)]
    assert heights == sorted(heights) and all(b - a > 0.02 for a, b in pairwise(heights))
    assert axis.at(-1.0) >= 0 and axis.at(1e9) <= 1
    words = [said for _, said in axis.ticks()]
    assert words[0] == "equal" and "+1e-1" in words and len(words) == len(set(words))
    text = chart("off", [Line(name="", points=[Point(s, v) for s, v in enumerate(values)])], scale="signed")
    assert ">equal</text>" in text
    nothing = scale_of("signed", [0.0, 0.0], everything=[0.0, 0.0], zero=False)
    assert nothing.at(0.0) == 0.5


def test_steps_are_said_as_spans() -> None:
    spans: list[tuple[int, int]] = []
    for step in (3, 3, 4, 7, 9, 10):
        append_step(spans, step)
    assert spans == [(3, 4), (7, 7), (9, 10)] and span_words(spans) == "3-4, 7, 9-10"
    assert span_words(spans, most=1) == "3-4 and 2 more spans"
