"""The report of a run: its numbers are those of the record, nothing in it comes from elsewhere, all is escaped."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from configs.debug import debug
from jaxllm.core.config import encode, override
from jaxllm.core.errors import LedgerError, RunError
from jaxllm.core.files import make_folder, write_json_atomic
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.records import StepLog, StepRecord
from jaxllm.report import facts as facts_module
from jaxllm.report.chart import Line, Mark, chart
from jaxllm.report.facts import gather
from jaxllm.report.goodput import goodput
from jaxllm.report.page import page, report_run
from jaxllm.report.speeds import read_speeds
from jaxllm.report.thin import Point, thin

EVIL = "</title><script>alert(1)</script>\"'&"


def recorded(lineage: int, step: int, loss: float) -> StepRecord:
    return StepRecord.of_values(
        lineage=lineage,
        step=step,
        cursor=8 * (step - 1),
        stage="first",
        sequences=8,
        tokens=512,
        loss=loss,
        grad_norm=0.5,
        lr=0.25,
        batch="0" * 16,
        losses="0" * 16,
        refused=False,
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run that went back from step 6 to step 4, and goes on; it has no store."""
    folder = tmp_path / "made"
    make_folder(folder)
    write_json_atomic(folder / "run.json", encode(replace(debug(), name="made")))
    with Journal(folder / "journal.jsonl") as journal:
        journal.append("start", lineage=0, identity="1" * 64, fingerprint="2" * 64, fence=1)
        journal.append("checkpoint", lineage=0, step=4, digest="ab" * 8, tokens=2048)
        journal.append("spike", lineage=0, step=6, signal="loss", value=77.0, limit=8.0, action=EVIL)
        journal.append("rollback", lineage=1, parent=0, step=4, last=6, edits=[], why=EVIL, by="guard")
    with StepLog(folder / "steps") as log:
        for lineage, step, loss in ((0, 1, 7.5), (0, 2, 7.25), (0, 3, 7.0), (0, 4, 6.75), (0, 5, 6.5), (0, 6, 77.0)):
            log.append(recorded(lineage, step, loss))
        log.append(recorded(1, 5, 6.25))
    return folder


class Seen(HTMLParser):
    """Tags, attributes and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.odd: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name == "href":
                self.links.append(str(value))
            if name in ("src", "srcset", "style") or name.startswith("on"):
                self.odd.append(f"{tag} {name}")


def seen(text: str) -> Seen:
    parser = Seen()
    parser.feed(text)
    return parser


def test_every_recorded_loss_is_in_the_page_and_what_was_left_is_told_apart(made: Path) -> None:
    text = page(gather(made))
    for lineage, step, loss in (("lineage 1", 4, "6.75"), ("lineage 1", 5, "6.25"), ("lineage 0, left", 6, "77")):
        assert f"<title>{lineage} step {step}: {loss}</title>" in text
    assert "<title>lineage 1 step 6" not in text
    assert "step 5 of 40" in text and "2,560 of 28,672 tokens" in text


def test_nothing_is_loaded_and_nothing_of_the_run_becomes_markup(made: Path) -> None:
    text = page(gather(made))
    found = seen(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(found.tags)
    assert not found.odd and not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text and "alert(1)" in text and "<script>" not in text


def test_every_link_leads_somewhere_and_every_anchor_is_one(made: Path) -> None:
    found = seen(page(gather(made)))
    assert len(found.ids) == len(set(found.ids))
    assert found.links and {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert "#closeup-0-6" in found.links and {"event-2", "event-3"} <= set(found.ids)


def test_a_name_of_the_run_is_escaped(made: Path) -> None:
    raw = json.loads((made / "run.json").read_text())
    raw["name"] = "<b>&made"
    write_json_atomic(made / "run.json", raw)
    assert "<h1>&lt;b&gt;&amp;made</h1>" in page(gather(made))


def test_a_run_of_no_steps_has_a_report(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "run.json", encode(debug()))
    said = report_run(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert said["step"] == 0 and "not started" in text and "nothing was recorded" in text


def test_damage_is_one_line_and_writes_nothing(made: Path) -> None:
    out = made / "out.html"
    for name, change in (("journal.jsonl", b"77.0"), ("steps/0000000000.jsonl", b'"loss":77.0')):
        path = next(
            p
            for p in made.rglob("*.jsonl")
            if p.parent.name + p.name == Path(name).parent.name + p.name or p.name == name
        )
        kept = path.read_bytes()
        assert change in kept
        path.write_bytes(kept.replace(change, change.replace(b"77", b"78")))
        with pytest.raises(LedgerError) as caught:
            report_run(made, out)
        assert "\n" not in str(caught.value) and not out.exists()
        path.write_bytes(kept)
    (made / "metrics.jsonl").write_text('{"time": 1, "step": "x"}\n')
    with pytest.raises(LedgerError, match=r"metrics.jsonl line 1"):
        report_run(made, out)
    with pytest.raises(RunError, match="no run folder"):
        report_run(made / "nowhere")


def test_seconds_are_accounted_for_once(made: Path) -> None:
    def line(time: float, **fields: object) -> str:
        return json.dumps({"time": time, **fields})

    def step(time: float, n: int) -> str:
        speeds = dict.fromkeys(("loss", "grad_norm", "lr", "tokens_per_second", "mfu"))
        return line(time, step=n, seconds_per_step=1.0, waiting_share=0.25, **speeds)

    lines = [
        line(100, starts_after=0),
        step(110, 4),
        step(115, 8),
        line(130, starts_after=4),
        step(140, 8),
        step(146, 12),
    ]
    (made / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = goodput([], read_speeds(made))
    assert found.total == 46
    assert found.seconds == {
        "training": 9.0,  # steps 1-8 and 9-12, three quarters of them
        "waiting": 3.0,
        "again": 4.0,  # steps 5-8
        "left": 0.0,
        "starting": 12.0,  # 100-106 and 130-136
        "between": 3.0,  # 111-115 has four steps; so has 140-146
        "absent": 15.0,
    }


def test_steps_of_a_lineage_that_was_left_are_no_training(made: Path) -> None:
    fields = '"seconds_per_step": 1.0, "waiting_share": 0, "tokens_per_second": null, "mfu": null'
    (made / "metrics.jsonl").write_text(
        '{"time": 100, "starts_after": 0}\n'
        f'{{"time": 106, "step": 6, {fields}}}\n'
        '{"time": 107, "starts_after": 4, "why": "spike"}\n'
        f'{{"time": 109, "step": 6, {fields}}}\n'
    )
    back = {"event": "rollback", "step": 4, "time": "1970-01-01T00:01:47.000Z"}
    found = goodput([back], read_speeds(made)).seconds
    assert (found["left"], found["training"], found["again"]) == (2.0, 6.0, 0.0)


def test_thinning_keeps_extremes_and_what_is_not_finite() -> None:
    points = [Point(s, 1.0) for s in range(100_000)]
    points[51_234], points[777], points[90_001] = Point(51_234, 9.0), Point(777, -3.0), Point(90_001, None)
    kept = thin(points)
    assert len(kept) < 2_010 and {points[51_234], points[777], points[90_001], points[0], points[-1]} <= set(kept)


def test_what_is_far_above_is_marked_at_the_edge() -> None:
    points = [Point(s, 1.0 + s / 1000) for s in range(200)] + [Point(200, 1e6), Point(201, None)]
    text = chart("loss", [Line(name="a", points=points)])
    assert 'class="odd"' in text and "step 200: 1e+06" in text and "step 201: not finite" in text


def test_a_copy_elsewhere_says_the_same(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    assert len(gather(tmp_path / "copy").close_ups) == 1


def test_a_copy_without_checkpoints_losses_and_speeds_has_a_report(made: Path, tmp_path: Path) -> None:
    """What is fetched from another machine while the run goes on there, a line of the journal half written."""
    copy = tmp_path / "copy"
    make_folder(copy / "steps")
    shutil.copy(made / "run.json", copy)
    journal = (made / "journal.jsonl").read_bytes()
    (copy / "journal.jsonl").write_bytes(journal + journal[:40])
    for segment in (made / "steps").iterdir():
        shutil.copy(segment, copy / "steps")
    text = page(gather(copy))
    assert "<title>lineage 1 step 5: 6.25</title>" in text and "Step 6 of lineage 0" in text
    assert "metrics.jsonl, which has the times, is not there" in text and "The token store is not here" in text


def test_a_journal_that_is_older_than_the_steps_is_said_to_be(made: Path) -> None:
    """The copy of the journal was made before the run went back, that of the steps after."""
    lines = (made / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (made / "journal.jsonl").write_bytes(b"".join(lines[:-1]))
    text = page(gather(made))
    assert "1 step is of a lineage that this journal does not know of yet" in text
    assert "<title>lineage 0 step 6: 77</title>" in text, "as far as it knows, that stands"


def test_a_long_run_is_a_small_page_with_every_spike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "LISTED", 20)
    folder, steps, spikes = tmp_path / "long", 6_000, (1_234, 3_999, 5_003)
    make_folder(folder)
    write_json_atomic(folder / "run.json", encode(override(debug(), [f"data.stages.1.steps={steps}"])))
    with StepLog(folder / "steps") as log:
        for step in range(1, steps + 1):
            log.append(recorded(0, step, 77.0 if step in spikes else 4.0 + step % 7 / 8))
    with Journal(folder / "journal.jsonl") as journal:
        journal.append("start", lineage=0, identity="1" * 64, fingerprint="2" * 64, fence=1)
        for step in range(1, 31):
            journal.append("checkpoint", lineage=0, step=step, digest="ab" * 32, tokens=64)
        for step in spikes:
            journal.append("spike", lineage=0, step=step, signal="loss", value=77.0, limit=8.0, action="warn")
    facts = gather(folder)
    text = page(facts)
    assert len(text) < 300_000 and len(facts.steps.live) == steps
    assert all(f"step {step:,}: 77</title>" in text for step in spikes)
    assert text.count("steps 1 to ") >= 3 and "4 to 4.75" in text, "the numbers of a stretch, where one points"
    assert len(facts.listed) == 20 and "20 of 34; all:" in text
    assert [e["step"] for e in facts.listed if e["event"] == "spike"] == [*spikes]
    found = seen(text)
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_lanes_show_what_the_run_stands_on(made: Path) -> None:
    text = page(gather(made))
    for words in ("0, steps 1 to 4: stands", "0, steps 5 to 6: left", "1, steps 5 to 5: stands"):
        assert f"<title>lineage {words}</title>" in text


def test_many_marks_at_one_place_are_one_line(made: Path) -> None:
    marks = [Mark(step=step, kind="stage", text=f"mark {step}", href="#events") for step in range(5000)]
    points = [Point(s, 1.0) for s in range(0, 5000, 5)]
    text = chart("loss", [Line(name="a", points=points)], [*marks, Mark(step=9, kind="spike", text="odd", href="#odd")])
    assert text.count('class="mark stage"') < 200 and "more</title>" in text
    assert 'class="mark spike"' in text and 'href="#odd"' in text, "a spike is not hidden behind other events"
