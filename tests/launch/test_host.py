"""One process on one host: its log, its exit code, signals that reach it once, what an attempt before left behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.stand_ins import ROOT, Stage, codes

HOST = ("bash", str(ROOT / "launch/host.sh"))
PID = "../logs/host0/process-1.pid"  # seen from the book


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def place(stage: Stage) -> dict[str, str]:
    return {"ENVIRONMENT": str(stage.environment), "LOGS": str(stage.folder / "logs"), "ATTEMPT": "4", "PROCESS": "1"}


@pytest.mark.parametrize(("does", "code"), [("0", 0), ("2", 2), ("3", 3), ("75", 75), ("KILL", 137)])
def test_the_exit_code_is_passed_on_and_written_down(stage: Stage, does: str, code: int) -> None:
    stage.plan(does)
    done = stage.run(*HOST, "--setup", "train", "configs/x.py", "name=a b", **place(stage))
    logs = stage.folder / "logs"
    assert done.returncode == code and "process 0, start 1" in done.stdout
    assert codes(logs) == {"host0/attempt-4.process-1": str(code)}
    assert "process 0, start 1" in (logs / "host0/attempt-4.process-1.log").read_text()
    assert (stage.book / "arguments.0").read_text().splitlines() == ["train", "configs/x.py", "name=a b"]


def test_a_signal_to_the_whole_group_reaches_jaxllm_once(stage: Stage) -> None:
    """As Slurm sends it. A second one would end the run before it has saved."""
    stage.plan("WAIT")
    process = subprocess.Popen(
        [*HOST, "train"], env=stage.env(**place(stage)), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    stage.wait_for("waits.0", PID)
    jaxllm = int((stage.book / PID).read_text())
    assert os.getpgid(jaxllm) == jaxllm  # two signals at once may be counted as one: this is what keeps it at one
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and "asked 1 times" in out
    assert "asked 1 times" in (stage.folder / "logs/host0/attempt-4.process-1.log").read_text()


def test_a_signal_before_jaxllm_is_there_reaches_it(stage: Stage) -> None:
    """Its keeper must not die of it and leave it behind. Here it comes as files of an earlier attempt are removed."""
    stage.shell("rm", 'kill -TERM "$PPID"\nexec /bin/rm "$@"')
    stage.shell("jaxllm", "sleep 20\nexit 9", stage.environment / "bin")
    assert stage.run(*HOST, "train", **place(stage)).returncode == 143
    assert codes(stage.folder / "logs") == {"host0/attempt-4.process-1": "143"}


def test_what_jaxllm_left_running_is_ended_with_it(stage: Stage) -> None:
    """A worker that holds the output open would otherwise keep this host for ever."""
    stage.shell("jaxllm", "sleep 50 &\nexit 75", stage.environment / "bin")
    began = time.monotonic()
    assert stage.run(*HOST, "train", **place(stage)).returncode == 75
    assert time.monotonic() - began < 40


def test_what_an_earlier_attempt_left_is_asked_to_leave(stage: Stage) -> None:
    """Its launcher is gone, it writes to the run all the same."""
    stage.plan("WAIT", "0")
    left = stage.start(*HOST, "train", **place(stage))
    stage.wait_for("waits.0", PID)
    began = time.monotonic()
    done = stage.run(*HOST, "--stop", "train", **(place(stage) | {"ATTEMPT": "5"}))
    assert time.monotonic() - began < 20
    assert done.returncode == 0 and "of an earlier attempt still runs" in done.stderr
    left.communicate(timeout=30)
    assert codes(stage.folder / "logs") == {"host0/attempt-4.process-1": "75", "host0/attempt-5.process-1": "0"}


def test_nothing_is_stopped_that_is_not_ours(stage: Stage) -> None:
    other = subprocess.Popen(["sleep", "30"])
    try:
        (stage.folder / "logs/host0").mkdir(parents=True)
        (stage.folder / "logs/host0/process-1.pid").write_text(f"{other.pid}\n")
        assert stage.run(*HOST, "--stop", **place(stage)).returncode == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_an_environment_that_cannot_be_made_is_tried_again_with_the_run(stage: Stage) -> None:
    """2 would be final for a launcher; alone, --setup says what is wrong with the machine."""
    wrong = place(stage) | {"ENVIRONMENT": str(stage.folder / "nowhere"), "PYTHON": "no-python"}
    alone, before_a_run = stage.run(*HOST, "--setup", **wrong), stage.run(*HOST, "--setup", "train", **wrong)
    assert (alone.returncode, before_a_run.returncode) == (2, 75)
    assert "PYTHON=python3.12" in alone.stderr and alone.stderr == before_a_run.stderr


def test_without_an_environment_it_says_how_to_make_one(stage: Stage) -> None:
    done = stage.run(*HOST, "train", **(place(stage) | {"ENVIRONMENT": str(stage.folder / "nowhere")}))
    assert done.returncode == 2 and "launch/host.sh --setup" in done.stderr
