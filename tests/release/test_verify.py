"""A run that went back once, verified; and damaged in every way that can be thought of, each of which is named."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jaxllm.checkpoint.layout import step_folder
from jaxllm.cli import app as commands
from jaxllm.core.errors import EXIT_CHECK_FAILED, EXIT_DONE
from jaxllm.ledger.chain import origin
from jaxllm.ledger.journal import DIGITS as JOURNAL_DIGITS
from jaxllm.ledger.segments import DIGITS
from jaxllm.release import checks
from jaxllm.release.verify import CHECKS, verify_run
from jaxllm.workspace import open_run, open_store
from tests.release.forging import journal_digest, of_step, reforged, reseal, steps_file
from tests.trained import KEPT, SPIKE, golden, trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lineages: 20 steps, then back to 16; checkpoints 8, 16, 24, 32, 40."""
    return trained(*golden(tmp_path_factory.mktemp("verify"), *SPIKE, KEPT))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def failed(folder: Path, samples: int = 60) -> dict[str, str]:
    """Check -> what it says, of those that do not hold."""
    return {f.name: f.said for f in verify_run(folder, samples=samples, seed=1) if f.holds is False}


def test_what_was_written_holds(run: Path) -> None:
    findings = list(verify_run(run, samples=60, seed=1))
    assert [f.name for f in findings] == list(CHECKS) and all(f.holds for f in findings)
    said = " ".join(f.said for f in findings)
    assert "2 lineages" in said and "44 step records" in said and "5 checkpoints" in said and "44 steps" in said
    done = CliRunner().invoke(commands, ["verify", str(run), "--json"])
    assert done.exit_code == EXIT_DONE and len(json.loads(done.stdout)) == len(CHECKS)


def test_a_run_that_is_running_holds(copy: Path) -> None:
    with (copy / "journal.jsonl").open("a") as file:
        file.write('{"event":"chec')
    with (copy / "steps" / "000000.jsonl").open("a") as file:
        file.write('{"batch":"0')
    assert failed(copy) == {}


def test_a_checkpoint_that_is_newer_than_what_was_read_is_looked_at_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that saves while it is verified: the journal that was read lacks its newest events."""
    whole = (copy / "journal.jsonl").read_bytes()
    (copy / "journal.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:-4]))
    real = checks.losses

    def losses(*arguments: Any) -> tuple[int, int]:
        (copy / "journal.jsonl").write_bytes(whole)
        return real(*arguments)

    monkeypatch.setattr(checks, "losses", losses)
    assert failed(copy) == {}
    monkeypatch.setattr(checks, "extent", lambda folder: ())
    (copy / "journal.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:-4]))
    assert "checkpoints" in failed(copy), "and it is that second look which makes it hold"


def test_without_the_store_what_was_not_checked_is_said(run: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.loads((copy / "run.json").read_text())
    raw["io"]["data_cache"] = "nowhere"
    (copy / "run.json").write_text(json.dumps(raw))
    monkeypatch.chdir(copy)
    last = list(verify_run(copy, samples=3, seed=0))[-1]
    assert last.holds is None and "no store with manifest" in last.said and last.line.startswith("not checked")


def test_intervals_are_executed_again_where_that_is_asked_for(run: Path, copy: Path) -> None:
    *_, last = verify_run(run, samples=0, seed=2, replays=2)
    assert last.name == "replay" and last.holds and last.said.count("bitwise") == 2
    reforged(
        steps_file(copy), DIGITS, lambda f: {**f, "grad_norm": 1.0, "grad_norm_bits": "3f800000"} if "step" in f else f
    )
    found = {f.name: f.said for f in verify_run(copy, samples=60, seed=2, replays=1) if f.holds is False}
    assert "replay" in found and "grad_norm_bits" in found["replay"] and "batches" not in found


# ---- damage --------------------------------------------------------------------------------------------------------


def change_a_record(folder: Path) -> None:
    path = steps_file(folder)
    path.write_bytes(path.read_bytes().replace(b'"tokens":1024', b'"tokens":1025', 1))


def forge_a_batch(folder: Path) -> None:
    reforged(steps_file(folder), DIGITS, of_step(13, batch="0123456789abcdef"))


def forge_losses(folder: Path) -> None:
    reforged(steps_file(folder), DIGITS, of_step(30, losses="0123456789abcdef"))


def forge_a_cursor(folder: Path) -> None:
    reforged(steps_file(folder), DIGITS, of_step(9, cursor=7))


def leave_out_a_step(folder: Path) -> None:
    reforged(steps_file(folder), DIGITS, lambda f: None if f.get("step") == 26 else f)


def cut_the_records(folder: Path) -> None:
    lines = steps_file(folder).read_bytes().splitlines(keepends=True)
    steps_file(folder).write_bytes(b"".join(lines[:-2]))


def cut_records_and_checkpoint(folder: Path) -> None:
    lines = steps_file(folder).read_bytes().splitlines(keepends=True)
    steps_file(folder).write_bytes(b"".join(lines[:-8]))
    shutil.rmtree(step_folder(folder / "checkpoints", 40))


def lose_the_last_checkpoint(folder: Path) -> None:
    shutil.rmtree(step_folder(folder / "checkpoints", 40))


def lose_losses(folder: Path) -> None:
    """Of the lineage that was left; what the guard leaves is whole."""
    shutil.rmtree(folder / "losses" / "0" / "tokens" / "c")


def break_an_array(folder: Path) -> None:
    path = folder / "losses" / "1" / "sum" / "zarr.json"
    path.write_text(path.read_text().replace("chunk_shape", "chunk_shapf"))


def cut_the_journal(folder: Path) -> None:
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:-4]))


def forge_an_edit(folder: Path) -> None:
    def change(fields: dict[str, Any]) -> dict[str, Any]:
        edits = [{**e, "first": e["first"] + 1} for e in fields["edits"]] if fields["event"] == "rollback" else None
        return fields if edits is None else {**fields, "edits": edits}

    reforged(folder / "journal.jsonl", JOURNAL_DIGITS, change)
    for path in (folder / "checkpoints").glob("*/meta/metadata"):  # and all heads that vouch for it
        reseal(path, journal_head=origin(JOURNAL_DIGITS))


def swap_checkpoints(folder: Path) -> None:
    a, b = (step_folder(folder / "checkpoints", s) for s in (24, 32))
    a.rename(a.with_name("x"))
    b.rename(a)
    a.with_name("x").rename(b)


def copy_parameters(folder: Path) -> None:
    """The parameters of step 24 under the name of step 32, with a manifest to match."""
    a, b = (step_folder(folder / "checkpoints", s) for s in (24, 32))
    shutil.rmtree(b / "params")
    shutil.copytree(a / "params", b / "params")
    theirs = json.loads((a / "meta" / "metadata").read_text())["manifest"]["arrays"]
    own = json.loads((b / "meta" / "metadata").read_text())["manifest"]["arrays"]
    params = {x["name"]: x for x in theirs if x["name"].startswith("params.")}
    digest = reseal(b / "meta" / "metadata", arrays=[params.get(x["name"], x) for x in own])
    journal_digest(folder, 32, digest)


def change_a_token(folder: Path) -> None:
    _, store = open_store(open_run(folder), folder)
    copied = folder / "cache" / Path(store.path).name
    shutil.copytree(store.path, copied)
    for path in (p for p in copied.rglob("*.bin") if "ends" not in p.name):
        path.write_bytes(bytes(b ^ 1 for b in path.read_bytes()))
    raw = json.loads((folder / "run.json").read_text())
    raw["io"]["data_cache"] = str(copied.parent)
    (folder / "run.json").write_text(json.dumps(raw))


def forge_the_end(folder: Path) -> None:
    """Another final state than the last checkpoint's."""
    reforged(
        folder / "journal.jsonl",
        JOURNAL_DIGITS,
        lambda f: {**f, "digest": "0" * 64} if f["event"] == "finish" else f,
    )


def other_config(folder: Path) -> None:
    raw = json.loads((folder / "run.json").read_text())
    raw["optimizer"]["clip_norm"] = 0.25
    (folder / "run.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "damage, check, words",
    [
        (change_a_record, "records", "steps/000000.jsonl line"),
        (forge_a_batch, "batches", "step 13 of lineage 0.*batch=0123456789abcdef"),
        (forge_losses, "losses", "losses/1: those of step 30.*losses=0123456789abcdef"),
        (forge_a_cursor, "records", "step 9 of lineage 0: cursor.*7"),
        (leave_out_a_step, "records", "step 26 of lineage 1 is missing"),
        (cut_the_records, "records", "step 40 of lineage 1 is missing, which the journal knows of"),
        (cut_records_and_checkpoint, "records", "step 40 of lineage 1 is missing"),
        (lose_the_last_checkpoint, "checkpoints", "the last one, of step 40, is missing"),
        (lose_losses, "losses", "losses/0: those of step 1 hash to"),
        (break_an_array, "losses", "losses/1/sum/zarr.json does not say how"),
        (cut_the_journal, "checkpoints", "000000(32|40): the journal"),
        (forge_an_edit, "batches", "step (17|18|19|20|21|22|23|24) of lineage 1"),
        (swap_checkpoints, "checkpoints", "meta: it is the manifest of step 32"),
        (copy_parameters, "checkpoints", "checkpoints 24 and 32 have the same parameters"),
        (change_a_token, "batches", "its data hashes to"),
        (forge_the_end, "journal", "finished with state 000000000000, its checkpoint 40 is"),
        (other_config, "journal", "run.json: its identity"),
    ],
)
def test_each_damage_is_named(damage: Callable[[Path], None], check: str, words: str, copy: Path) -> None:
    import re

    damage(copy)
    found = failed(copy)
    assert check in found, found
    assert re.search(words, found[check]), found
    done = CliRunner().invoke(commands, ["verify", str(copy), "--steps", "60"])
    assert done.exit_code == EXIT_CHECK_FAILED and "FAILED" in done.stdout


def test_any_flipped_bit_of_the_record_is_found(copy: Path) -> None:
    """Of arrays, only what is read back can be told apart; tests/checkpoint/test_damage.py is about those."""
    dice = random.Random(5)
    kept = ("journal.jsonl", "steps/*.jsonl", "losses/*/*/c/*", "checkpoints/*/meta/metadata")
    files = sorted(p for pattern in (*kept, "checkpoints/*/cursor/metadata") for p in copy.glob(pattern) if p.is_file())
    assert len(files) > 10
    missed = []
    for _ in range(150):
        path = dice.choice(files)
        whole = path.read_bytes()
        at, bit = dice.randrange(len(whole)), dice.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        if not failed(copy, samples=0):
            missed.append((str(path.relative_to(copy)), at, bit))
        path.write_bytes(whole)
    assert missed == []
    assert failed(copy, samples=0) == {}
