"""The watchdog barks at a step that hangs and at nothing else."""

import threading
from pathlib import Path

import pytest

from jaxllm.train import watchdog
from jaxllm.train.watchdog import Watchdog, hangs


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes, in place of exits."""
    codes: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    return codes


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_a_hang_leaves_stacks_a_note_and_75(tmp_path: Path, left: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    with Watchdog(0.1, tmp_path / "logs", 3) as dog:
        dog.watch(17)
        wait(0.8)
    assert left == [75]
    [note] = hangs(tmp_path / "logs")
    assert (note["step"], note["process"], note["seconds"]) == (17, 3, 0.1)
    assert "test_watchdog.py" in (tmp_path / "logs" / note["stacks"]).read_text()
    assert "process 3: step 17 has not ended for 0.1 s" in capfd.readouterr().err
    assert list(hangs(tmp_path / "logs")) == []  # told once


def test_a_hang_of_the_file_system_is_no_reason_to_stay(
    tmp_path: Path, left: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "_WRITING_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "make_folder", lambda folder: wait(5.0))
    with Watchdog(0.1, tmp_path / "logs", 0) as dog:
        dog.watch(17)
        wait(0.8)
    assert left == [75]
    assert "the stacks of all threads could not be written" in capfd.readouterr().err


def test_steps_that_end_and_long_work_between_them_are_no_hang(tmp_path: Path, left: list[int]) -> None:
    with Watchdog(1.0, tmp_path, 0) as dog:
        wait(1.2)  # nothing began yet
        for step in range(6):
            dog.watch(step)
            wait(0.2)
        with dog.resting():
            wait(1.2)
    assert left == [] and list(tmp_path.iterdir()) == []


def test_none_never_barks(tmp_path: Path, left: list[int]) -> None:
    with Watchdog(None, tmp_path, 0) as dog:
        dog.watch(1)
        wait(0.1)
    assert left == []
