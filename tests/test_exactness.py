"""The heart: a run that was killed again and again is, to the bit, the run that never was; and this test can fail."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxllm import app
from jaxllm.checkpoint.reader import Restored
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.core.config import override
from jaxllm.core.errors import LedgerError, RunError
from jaxllm.data import stream as stream_module
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import read_steps
from jaxllm.train import engine
from jaxllm.workspace import already_finished, open_config
from tools.kill_test import differences, harvest, kill_test

CONFIG = "tests/golden/config.py:golden"
SMALL = ["evaluation.every_steps=null", "evaluation.windows=4", "logging.tensorboard=false"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("caches")
    return [f"io.data_cache={folder / 'data'}", f"io.compilation_cache={folder / 'xla'}"]


@pytest.mark.slow
def test_killed_runs_are_the_run_that_was_never_killed(tmp_path: Path, caches: list[str]) -> None:
    tally = kill_test(CONFIG, [*SMALL, *caches], kills=6, seed=3, work=tmp_path, console=Console(quiet=True))
    assert sum(tally.kills.values()) == 6
    assert tally.kills["stage boundary"] >= 1 and tally.resumed >= 1
    assert tally.problems == []


# ---- mutations: each of these must be seen -------------------------------------------------------------------------


def train(root: Path, caches: list[str], *, stop_at: int | None = None) -> Path:
    run, folder = open_config(CONFIG, [*SMALL, *caches, f"io.root={root}"])
    app.train(run, folder, stop_at=stop_at, profile=None, as_json=False)
    return folder


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, caches: list[str]) -> tuple[Path, Path]:
    """(a finished run, the same run stopped at step 16)."""
    whole = train(tmp_path_factory.mktemp("whole"), caches)
    half = train(tmp_path_factory.mktemp("half"), caches, stop_at=16)
    return whole, half


def resumed(half: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run, resumed to its end."""
    folder = tmp_path / half.name
    shutil.copytree(half, folder)
    run, _ = open_config(str(folder))
    app.train(run, folder, stop_at=None, profile=None, as_json=False)
    return folder


def restoring(change: Callable[[dict[str, Any]], None]) -> Callable[..., Restored | None]:
    """restore_latest, with the items changed after all checks."""
    real = CheckpointStore.restore_latest

    def restore(self: CheckpointStore, *args: Any, **kw: Any) -> Restored | None:
        restored = real(self, *args, **kw)
        if restored is not None:
            change(restored.items)
        return restored

    return restore


def lose_moments(items: dict[str, Any]) -> None:
    items["opt"]["mu"] = jax.tree.map(lambda x: x * 0, items["opt"]["mu"])


def lose_count(items: dict[str, Any]) -> None:
    items["opt"]["count"] = items["opt"]["count"] * 0


def flip_one_bit(items: dict[str, Any]) -> None:
    scale = items["params"]["norm"]["scale"]
    bits = np.asarray(scale).view(np.uint32).copy()
    bits[0] ^= 1 << 12
    items["params"]["norm"]["scale"] = jax.device_put(bits.view(np.float32), scale.sharding)


def shift_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    real = stream_module.Stream.samples
    monkeypatch.setattr(
        stream_module.Stream, "samples", lambda self, positions: (real(self, positions) + 1) % self.total
    )


def other_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.learning_rate
    monkeypatch.setattr(engine, "learning_rate", lambda schedule, step: real(schedule, max(step - 16, 0)))


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_run(halves: tuple[Path, Path], tmp_path: Path) -> None:
    whole, half = halves
    assert differences(harvest(whole), harvest(resumed(half, tmp_path))) == []


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [lose_moments, lose_count, flip_one_bit])
def test_a_state_that_was_restored_wrongly_is_seen(
    mutation: Callable[[dict[str, Any]], None],
    halves: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, half = halves
    monkeypatch.setattr(CheckpointStore, "restore_latest", restoring(mutation))
    found = differences(harvest(whole), harvest(resumed(half, tmp_path)))
    assert any(text.startswith(("step 17", "step 18")) for text in found), found
    assert any("final state digest" in text for text in found)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [shift_cursor, other_schedule])
def test_other_data_or_another_schedule_is_seen(
    mutation: Callable[[pytest.MonkeyPatch], None],
    halves: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, half = halves
    mutation(monkeypatch)
    found = differences(harvest(whole), harvest(resumed(half, tmp_path)))
    assert any(text.startswith("step 17") for text in found), found


@pytest.mark.slow
def test_a_step_that_comes_out_otherwise_is_journaled_and_both_records_stay(
    halves: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 17 to 24 were recorded by a process that died before checkpoint 24; they are executed again."""
    whole, half = halves
    folder = tmp_path / whole.name
    shutil.copytree(half, folder)
    shutil.rmtree(folder / "steps")
    shutil.copytree(whole / "steps", folder / "steps")
    monkeypatch.setattr(CheckpointStore, "restore_latest", restoring(flip_one_bit))
    run, _ = open_config(str(folder))
    app.train(run, folder, stop_at=20, profile=None, as_json=False)
    outcome = harvest_events(folder)
    assert outcome["divergence"] == 4
    assert {r.step for r in read_steps(folder / "steps")} == set(range(1, 41))


def harvest_events(folder: Path) -> dict[str, int]:
    return Counter(e["event"] for e in read_journal(folder / "journal.jsonl"))


@pytest.mark.slow
def test_a_rewritten_record_is_seen(halves: tuple[Path, Path], tmp_path: Path) -> None:
    whole, _ = halves
    folder = tmp_path / "steps"
    shutil.copytree(whole / "steps", folder)
    segment = sorted(folder.iterdir())[0]
    text = segment.read_text()
    assert text.count('"step":7,') == 1
    lines = text.splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if '"step":7,' in line)
    lines[number] = lines[number].replace('"refused":false', '"refused":true')
    segment.write_text("".join(lines))
    with pytest.raises(LedgerError, match=r"line 8 \(after step 6\)"):
        list(read_steps(folder))


@pytest.mark.slow
def test_a_finished_run_changes_nothing(halves: tuple[Path, Path]) -> None:
    whole, half = halves
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    run, _ = open_config(str(whole))
    assert "nothing to do" in (already_finished(run, whole) or "")
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before
    assert already_finished(open_config(str(half))[0], half) is None


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_run_still_comes_out_the_same(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, half = halves
    folder = tmp_path / half.name
    shutil.copytree(half, folder)
    data = max((folder / "checkpoints").glob("*16*/params/**/d/*"), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 4
    data.write_bytes(raw)
    run, _ = open_config(str(folder))
    app.train(run, folder, stop_at=None, profile=None, as_json=False)
    assert harvest_events(folder)["fallback"] == 1
    assert differences(harvest(whole), harvest(folder)) == []


@pytest.mark.slow
def test_a_changed_placement_is_journaled_and_a_changed_identity_refused(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    _, half = halves
    folder = tmp_path / half.name
    shutil.copytree(half, folder)
    run, _ = open_config(str(folder))
    with pytest.raises(RunError, match=r"seed: 11 -> 8; .*|seed: 11 -> 8\. "):
        app.train(override(run, ["seed=8"]), folder, stop_at=None, profile=None, as_json=False)
    changed = dataclasses.replace(run, compute=dataclasses.replace(run.compute, micro_batch=4))
    app.train(changed, folder, stop_at=20, profile=None, as_json=False)
    assert harvest_events(folder)["numerics"] == 1
