"""What a person does to the course of a run, by the commands; what comes of it when the run goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jaxllm.asking import roll_back, skip_steps
from jaxllm.cli import app as commands
from jaxllm.core.errors import RunError
from jaxllm.forking import fork
from jaxllm.ledger.fold import present
from jaxllm.ledger.history import history, lineages_of
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lease import Lease
from jaxllm.ledger.requests import waiting
from jaxllm.release.verify import verify_run
from jaxllm.workspace import open_config
from tests.test_rollback import recomputed
from tests.trained import KEPT, golden, trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 20, with checkpoints 8, 16, 20."""
    return trained(*golden(tmp_path_factory.mktemp("control"), KEPT), stop_at=20)


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / stopped.name))


def go_on(folder: Path) -> None:
    trained(*open_config(str(folder)))


def command(*arguments: str) -> Any:
    done = CliRunner().invoke(commands, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_skipped_and_rolled_back_by_hand_the_run_consumes_what_its_journal_says(copy: Path) -> None:
    skipped = command("skip", str(copy), "--steps", "30:31")
    assert (skipped["event"], skipped["step"], skipped["by"], len(skipped["edits"])) == ("skip", 30, "person", 1)
    event = command("rollback", str(copy), "--to", "8", "--defer", "--steps", "10:11", "--why", "a look at it")
    assert (event["lineage"], event["step"], event["last"], event["why"]) == (1, 8, 20, "a look at it")
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["00000008", "lineage-0"]
    go_on(copy)
    says = recomputed(copy)
    records = list(history(copy))
    assert [r.step for r in records] == list(range(1, 41))
    assert all(says[r.step] == r.batch for r in records)
    before = recomputed(copy, 0)  # of which the skip holds already
    changed = [r.step for r in records if before[r.step] != r.batch]
    assert changed == list(range(10, 25))
    assert (says[23], says[24]) == (before[10], before[11])
    # The commands that look at data look at the lineage that is asked for.
    old, new = (command("data", "step", str(copy), "12", *more) for more in (["--lineage", "0"], []))
    assert [old["lineage"], new["lineage"]] == [0, 1] and old["rows"] != new["rows"]
    assert (
        command("data", "step", str(copy), "10", "--lineage", "0")["rows"][0]["window"]
        == (command("data", "step", str(copy), "23")["rows"][0]["window"])
    )


def test_a_document_of_skipped_data_is_not_found_any_more(copy: Path) -> None:
    rows = command("data", "step", str(copy), "30")["rows"]
    document = rows[0]["spans"][-1]["id"]
    seen = command("data", "find", str(copy), "--doc", document)["sightings"]
    assert 30 in {s["step"] for s in seen}
    skip_steps(copy, (30, 30), defer=False)
    later = command("data", "find", str(copy), "--doc", document)["sightings"]
    window = rows[0]["window"]
    assert window in {s["window"] for s in seen if s["step"] == 30}
    assert not any(s["window"] == window and s["step"] == 30 for s in later)


def test_a_finished_run_is_reopened(copy: Path) -> None:
    go_on(copy)
    assert present(read_journal(copy / "journal.jsonl")).finished is not None
    roll_back(copy, 32, kind=None)
    assert present(read_journal(copy / "journal.jsonl")).finished is None
    go_on(copy)
    finishes = [e["digest"] for e in read_journal(copy / "journal.jsonl") if e["event"] == "finish"]
    assert len(finishes) == 2 and finishes[0] == finishes[1], "the same data again is the same run again"
    assert lineages_of(copy).live == 1


def test_a_checkpoint_whose_process_could_not_journal_it_is_journaled_before_it_is_left(copy: Path) -> None:
    lines = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"event":"checkpoint"' in line)
    (copy / "journal.jsonl").write_bytes(b"".join(lines[:last]))
    roll_back(copy, 8, kind=None)
    assert 20 in {c.step for c in present(read_journal(copy / "journal.jsonl")).checkpoints_of(0)}
    assert [f.said for f in verify_run(copy, samples=0, seed=0) if f.holds is False] == []


def test_what_was_skipped_has_to_fit_a_fork(copy: Path, tmp_path: Path) -> None:
    skip_steps(copy, (22, 23), defer=False)
    with pytest.raises(RunError, match="what the parent skipped or deferred does not fit"):
        fork(copy, 20, tmp_path / "f", overrides=["data.stages.0.steps=22"])
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    "what, words",
    [
        (lambda f: skip_steps(f, (20, 22), defer=False), "executed 20 steps already.*jaxllm rollback"),
        (lambda f: skip_steps(f, (39, 41), defer=False), r"do not lie in 1\.\.40"),
        (lambda f: skip_steps(f, (39, 40), defer=True), "changes nothing"),
        (lambda f: roll_back(f, 9, kind=None), "no checkpoint 9 in its live lineage; it has 0, 8, 16, 20"),
        (lambda f: roll_back(f, 20, kind=None), "has executed 20 steps"),
        (lambda f: roll_back(f, 8, kind="skip", steps=(7, 9)), r"do not lie in 9\.\.20"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(what: Any, words: str, copy: Path) -> None:
    before = (copy / "journal.jsonl").read_bytes()
    with pytest.raises(RunError, match=words):
        what(copy)
    assert (copy / "journal.jsonl").read_bytes() == before


def test_a_run_whose_holder_does_not_answer_is_left_alone(copy: Path) -> None:
    with (
        Lease.acquire(copy),
        pytest.raises(RunError, match=r"not answered within 0\.2 s; .* withdrawn"),
    ):
        roll_back(copy, 8, kind=None, timeout=0.2)
    assert lineages_of(copy).live == 0 and waiting(copy) == []
