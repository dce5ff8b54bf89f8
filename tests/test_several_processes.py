"""Real runs of several processes under the supervisor: killed, stopped, hung, moved elsewhere; and who disagrees."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jaxllm import app
from jaxllm.core.errors import EXIT_USAGE
from jaxllm.ledger.fold import story
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import read_steps
from jaxllm.workspace import open_config
from tests.simulated import ROOT, _free_port
from tools.kill_test import differences, harvest, last_step

pytestmark = pytest.mark.slow

CONFIG = "tests/golden/config.py:golden"
QUIET = ["evaluation.every_steps=null", "evaluation.windows=4", "logging.tensorboard=false"]
NATIVE = ("Gloo", "coordination_service", "Check failure", "    @ ")
PATIENCE = 240.0


def environment() -> dict[str, str]:
    """One CPU device for each process, and the threads that decide CPU bits."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and not k.startswith("JAXLLM_")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # LLVM's optimisation is most of the time that such small runs take.
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "NPROC": "2", "JAX_PLATFORMS": "cpu"}
    return kept | flags | {"PYTHONPATH": path}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shared")
    return [*QUIET, f"io.data_cache={folder / 'data'}", f"io.compilation_cache={folder / 'xla'}"]


class Supervised:
    """A run under launch/processes.py. A context manager: whatever a test finds, no process of it is left behind."""

    def __init__(self, root: Path, processes: int, *arguments: str) -> None:
        self.folder = root / "golden"
        command = [sys.executable, "launch/processes.py", "-n", str(processes), "--grace", "3", "train", CONFIG]
        self._process = subprocess.Popen(
            [*command, *arguments, f"io.root={root}"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            for pid in self._children():
                os.killpg(pid, signal.SIGKILL)  # one that is stopped would hear no other signal
            self._process.kill()
            self._process.communicate()

    def when_step(self, step: int) -> list[int]:
        """Wait until it is recorded; the process ids, by process."""
        deadline = time.monotonic() + PATIENCE
        while last_step(self.folder) < step:
            assert self._process.poll() is None and time.monotonic() < deadline, f"no step {step}: {self.end()}"
            time.sleep(0.005)
        return self._children()

    def _children(self) -> list[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def end(self) -> tuple[int, str]:
        """(exit code, all that was said)."""
        try:
            said, _ = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children end with it
            said, _ = self._process.communicate()
            raise AssertionError(f"hung; it said:\n{said}") from None
        return self._process.returncode, said


def seconds_until_gone(pids: list[int]) -> float:
    began = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < began + 60:
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def unbroken(place: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of four processes says that nothing happened to."""
    with Supervised(tmp_path_factory.mktemp("unbroken"), 4, *place) as run:
        code, said = run.end()
    assert code == 0, said
    return harvest(run.folder)


def test_four_processes_of_which_one_is_killed_twice_over(
    unbroken: dict[str, Any], place: list[str], tmp_path: Path
) -> None:
    with Supervised(tmp_path, 4, *place) as run:
        for victim, step in ((2, 20), (0, 30)):
            pids = run.when_step(step)
            assert len(pids) == 4
            os.kill(pids[victim], signal.SIGKILL)
            assert seconds_until_gone(pids) < 15
        code, said = run.end()
    assert code == 0, said
    lines = [line for line in said.splitlines() if line.startswith("jaxllm: process ")]
    assert len(lines) == 2, said
    resumed = [e["step"] for e in read_journal(run.folder / "journal.jsonl") if e["event"] == "resume"]
    for line, victim, step in zip(lines, (2, 0), resumed, strict=True):
        assert line.startswith(f"jaxllm: process {victim} of 4 was killed by SIGKILL after step ")
        assert line.endswith(f"; all start again from {f'checkpoint {step}' if step else 'the start'}")
    assert not any(word in said for word in NATIVE), said
    assert "Gloo" in (run.folder / "logs" / "process_3.log").read_text()
    survivor = harvest(run.folder)
    assert differences(unbroken, survivor) == []
    assert survivor["events"]["resume"] == 2 and survivor["present"].claim == "bitwise"


def test_stopped_hung_and_moved_to_other_topologies(unbroken: dict[str, Any], place: list[str], tmp_path: Path) -> None:
    """Two processes that share every row (tp across them): one gets a signal, one hangs; one process goes on."""
    with Supervised(tmp_path, 2, *place, "mesh.tp=2", "guard.watchdog_seconds=12", "--stop-at", "30") as run:
        os.kill(run.when_step(3)[1], signal.SIGTERM)
        stopped = wait_for(run.folder, "stop")
        assert stopped["why"] == "signal SIGTERM at process 1"
        os.kill(run.when_step(stopped["step"] + 3)[1], signal.SIGSTOP)
        code, said = run.end()
    assert code == 0, said
    assert "process 0: step" in said and "has not ended for 12 s" in said
    stacks = list((run.folder / "logs").glob("hang_process_0_step_*.txt"))
    assert stacks and "engine.py" in stacks[0].read_text()
    alone, folder = open_config(str(run.folder), ["mesh.tp=1", "guard.watchdog_seconds=null"])
    assert app.train(alone, folder, stop_at=36, profile=None, as_json=False) == 0
    events = read_journal(folder / "journal.jsonl")
    kinds = Counter(e["event"] for e in events)
    assert kinds["hang"] >= 1 and kinds["divergence"] == 0 and kinds["numerics"] == 1
    assert "processes: 2 -> 1" in "\n".join(story(events))
    records = {r.step: r for r in read_steps(folder / "steps")}
    assert records.keys() == set(range(1, 37))
    for step, record in records.items():
        other = unbroken["records"][0, step]
        assert (record.batch, record.cursor, record.tokens) == (other.batch, other.cursor, other.tokens)
        assert record.loss == pytest.approx(other.loss, rel=2e-6)


def wait_for(folder: Path, event: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for found in read_journal(folder / "journal.jsonl"):
            if found["event"] == event:
                return found
        time.sleep(0.05)
    raise AssertionError(f"no {event} event")


def test_who_differs_is_named_by_all(place: list[str], tmp_path: Path) -> None:
    shared = {"JAXLLM_COORDINATOR": f"localhost:{_free_port()}", "JAXLLM_PROCESSES": "2"}
    command = [sys.executable, "-m", "jaxllm", "train", CONFIG, *place, f"io.root={tmp_path}"]
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            [*command, f"seed={11 + i}", "--stop-at", str(30 + i)],
            cwd=ROOT,
            env=environment() | shared | {"JAXLLM_PROCESS": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        answers = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, said in zip(processes, answers, strict=True):
        assert process.returncode == EXIT_USAGE, said
        assert (
            "process 1 differs from process 0 in --stop-at: 30 -> 31; config.seed: 11 -> 12; start all of them with"
            in said
        )
    assert time.monotonic() - began < 60
    assert not (tmp_path / "golden" / "journal.jsonl").exists()
