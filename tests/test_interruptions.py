"""What ends a run, and what a run refuses: signals, the guard, lost history, layouts that do not fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import pytest

from jaxllm import app
from jaxllm.core.config import override
from jaxllm.core.errors import (
    EXIT_GUARD_STOPPED,
    EXIT_SAVED_START_AGAIN,
    CheckpointError,
    LayoutError,
    LedgerError,
    RunError,
)
from jaxllm.ledger.fold import present
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import read_steps
from jaxllm.run import RunConfig
from jaxllm.workspace import open_config
from tests.simulated import run_simulated

pytestmark = pytest.mark.slow

CONFIG = "tests/golden/config.py:golden"
QUIET = ["evaluation.every_steps=null", "evaluation.windows=4", "logging.tensorboard=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shared")
    return [*QUIET, f"io.data_cache={folder / 'data'}", f"io.compilation_cache={folder / 'xla'}"]


def opened(place: list[str], root: Path, *more: str) -> tuple[RunConfig, Path]:
    return open_config(CONFIG, [*place, f"io.root={root}", *more])


def go(run: RunConfig, folder: Path, stop_at: int | None = None) -> int:
    return app.train(run, folder, stop_at=stop_at, profile=None, as_json=False)


def events(folder: Path) -> list[str]:
    return [e["event"] for e in read_journal(folder / "journal.jsonl")]


@pytest.fixture(scope="module")
def paused(place: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped at step 9, after checkpoints 8 and 9."""
    run, folder = opened(place, tmp_path_factory.mktemp("paused"))
    assert go(run, folder, stop_at=9) == 0
    return folder


@pytest.fixture
def copy(paused: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(paused, tmp_path / paused.name))


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_75(asked: signal.Signals, place: list[str], tmp_path: Path) -> None:
    long = "data.stages.1.steps=4000"  # so that it cannot be over before the signal comes
    command = [sys.executable, "-m", "jaxllm", "train", CONFIG, *place, f"io.root={tmp_path}", "guard.lag=2", long]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    steps = tmp_path / "golden" / "steps"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if sum(p.read_bytes().count(b'"step":') for p in steps.glob("*.jsonl")) >= 3:
            break
        time.sleep(0.005)
    process.send_signal(asked)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_SAVED_START_AGAIN, said
    folder = tmp_path / "golden"
    last = read_journal(folder / "journal.jsonl")[-1]
    assert last["event"] == "stop" and asked.name in last["why"]
    assert last["step"] in [int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(r.step for r in read_steps(folder / "steps")) == last["step"]


def test_the_guard_stops_a_run_that_does_not_recover(place: list[str], tmp_path: Path) -> None:
    schedule = json.dumps([{"steps": 40, "start": 1e37, "end": 1e37}])
    run, folder = opened(place, tmp_path, f"optimizer.schedule={schedule}", "guard.max_refused=4")
    assert go(run, folder) == EXIT_GUARD_STOPPED
    assert events(folder)[-1] == "guard_stop"
    refused = [r.step for r in read_steps(folder / "steps") if r.refused]
    assert len(refused) == 4 == Counter(events(folder))["refused"]
    # Once more: the verdict is the same, at the same step, whatever was re-executed.
    assert go(run, folder) == EXIT_GUARD_STOPPED
    stops = [e["step"] for e in read_journal(folder / "journal.jsonl") if e["event"] == "guard_stop"]
    assert stops == [refused[-1], refused[-1]]


def test_lost_history_is_refused(copy: Path) -> None:
    run, folder = open_config(str(copy))
    shutil.move(copy / "journal.jsonl", copy / "aside")
    with pytest.raises(LedgerError, match=r"journal\.jsonl does not hold the event that checkpoint 9"):
        go(run, folder)
    (copy / "journal.jsonl").unlink()
    shutil.move(copy / "aside", copy / "journal.jsonl")
    shutil.rmtree(copy / "steps")
    with pytest.raises(LedgerError, match="no record of step 9"):
        go(run, folder)


def test_records_of_another_run_are_refused(copy: Path, place: list[str], tmp_path: Path) -> None:
    other, elsewhere = opened(place, tmp_path / "other", "seed=12")
    assert go(other, elsewhere, stop_at=10) == 0
    shutil.rmtree(copy / "steps")
    shutil.copytree(elsewhere / "steps", copy / "steps")
    with pytest.raises(LedgerError, match=r"does not hold the record .* that checkpoint 9 was saved after"):
        go(*open_config(str(copy)))


def test_memory_that_runs_out_is_one_line(place: list[str], tmp_path: Path) -> None:
    run, _ = opened(place, tmp_path)
    said = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\ntable of buffers"
    with pytest.raises(RunError, match=r"\(Out of memory allocating 9 bytes\); use a"), app.enough_memory(run):
        raise jax.errors.JaxRuntimeError(said)
    with pytest.raises(jax.errors.JaxRuntimeError), app.enough_memory(run):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_lost_checkpoints_are_events_or_errors(copy: Path) -> None:
    run, folder = open_config(str(copy))
    newest = sorted((copy / "checkpoints").glob("0*"))
    shutil.rmtree(newest[-1])
    assert go(run, folder, stop_at=10) == 0
    assert "fallback" in events(folder)
    for step in (copy / "checkpoints").glob("0*"):
        shutil.rmtree(step)
    with pytest.raises(CheckpointError, match="the journal names checkpoint 10"):
        go(run, folder)


@pytest.mark.parametrize("change", ["mesh.dp=3", "compute.micro_batch=5"])
def test_what_cannot_run_leaves_no_trace(change: str, copy: Path) -> None:
    run, folder = open_config(str(copy))
    before = {p: p.read_bytes() for p in (copy / "run.json", copy / "journal.jsonl")}
    with pytest.raises((LayoutError, ValueError)):
        go(override(run, [change]), folder)
    assert {p: p.read_bytes() for p in before} == before
    assert present(read_journal(copy / "journal.jsonl")).claim == "bitwise"


def test_a_stop_that_lies_behind_is_refused(copy: Path) -> None:
    run, folder = open_config(str(copy))
    with pytest.raises(RunError, match="--stop-at 3"):
        go(run, folder, stop_at=3)


def test_one_writer_at_a_time(copy: Path) -> None:
    from jaxllm.ledger.lease import Lease

    run, folder = open_config(str(copy))
    with Lease.acquire(folder), pytest.raises(RunError, match=str(os.getpid())):
        go(run, folder)


def test_another_name_is_another_run(copy: Path, place: list[str], tmp_path: Path) -> None:
    run, folder = open_config(str(copy), ["seed=5", "name=other", f"io.root={tmp_path}"])
    assert (run.name, folder) == ("other", tmp_path / "other")


def eight_devices(folder: str) -> int:
    run, where = open_config(folder, ["mesh.dp=2", "mesh.fsdp=2", "mesh.tp=2"])
    return go(run, where, stop_at=14)


def test_a_run_goes_on_on_eight_devices(paused: Path, copy: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(paused, tmp_path / "alone"))
    go(*open_config(str(alone)), stop_at=14)
    assert run_simulated(eight_devices, folder=str(copy)) == 0
    ours = {r.step: r for r in read_steps(alone / "steps")}
    theirs = {r.step: r for r in read_steps(copy / "steps")}
    assert ours.keys() == theirs.keys() == set(range(1, 15))
    for step in range(10, 15):
        assert theirs[step].batch == ours[step].batch
        assert theirs[step].loss == pytest.approx(ours[step].loss, rel=2e-6)
    assert Counter(events(copy))["numerics"] == 1
    assert present(read_journal(copy / "journal.jsonl")).claim == "rounding"
