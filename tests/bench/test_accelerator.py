"""What travels to a machine with an accelerator, and what is done there, with models of seconds."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jaxllm.workspace import open_config
from tools import accelerator
from tools.accelerator import CARRIED, CASES, NEEDS_GIB, SMALL, THERE, result_of, run, table

ROOT = Path(__file__).resolve().parents[2]


def needed(name: str, found: set[str]) -> set[str]:
    """A distribution, what it depends on, what that depends on ..., as installed here."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in found:
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            asked = Requirement(text)
            if asked.marker is None or asked.marker.evaluate({"extra": ""}):
                needed(asked.name, found)
    return found


def test_every_dependency_travels_or_is_there() -> None:
    known = {*CARRIED, *THERE, "markdown", "markupsafe", "werkzeug", "six", "jaxllm"}  # some of tensorboard's own
    assert needed("jaxllm", set()) - known == set()
    assert not set(CARRIED) & THERE


@pytest.mark.parametrize("name", [name for name, (_, what) in CASES.items() if what[0] != "check"])
def test_cases_are_configs_that_can_be_made_small(name: str) -> None:
    _, (kind, config, *overrides) = CASES[name]
    whole, _ = open_config(config, overrides)
    small, _ = open_config(config, [*overrides, *SMALL])
    assert kind in ("step", "loop", "curve") and whole.precision == small.precision
    assert small.compute == whole.compute and small.model.width < whole.model.width
    assert set(NEEDS_GIB) < set(CASES)


@pytest.mark.slow
def test_a_step_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "tools/accelerator_case.py", *CASES["llama_1b3_2k_float8"][1], *SMALL]
    env = os.environ | {"JAXLLM_BENCH_WORK": str(tmp_path)}
    found = result_of(command, env, 300, tmp_path / "log")
    assert "error" not in found, found
    losses, seconds = found["losses"], found["seconds"]
    assert isinstance(losses, list) and isinstance(seconds, list) and len(losses) == len(seconds)
    assert losses[-1] < losses[0] and found["speed"] == pytest.approx(2 * 128 / float(str(found["step"])))
    assert found["float8_products"] == 0  # a CPU has none


def cases(monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str], tmp_path: Path) -> None:
    """Stand-ins: each case is a script of Python."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/accelerator_case.py").write_text("import sys; exec(sys.argv[1])")
    monkeypatch.setattr(accelerator, "CASES", {name: (60, [script]) for name, script in scripts.items()})
    monkeypatch.setattr(accelerator, "ROOT", tmp_path)
    monkeypatch.setattr(accelerator, "install", lambda wheels, work: Path(sys.executable))
    monkeypatch.setattr(accelerator, "environment", lambda work: dict(os.environ))
    monkeypatch.setattr(accelerator, "memory_gib", lambda: None)


def test_what_has_a_result_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "import pathlib; p = pathlib.Path({!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    counted = {name: said.format(str(tmp_path / name)) for name in ("good", "bad")}
    good = counted["good"] + "; print('noise'); print('{\"said\": \"fine\"}')"
    bad = counted["bad"] + "; raise SystemExit('jaxllm: RESOURCE_EXHAUSTED of everything')"
    cases(monkeypatch, {"good": good, "bad": bad}, tmp_path)
    for _ in range(2):
        assert run(tmp_path, tmp_path / "work", seconds=100, only=[], small=False) == 1
    assert (tmp_path / "good").read_text() == "x" and (tmp_path / "bad").read_text() == "xx"
    out = capsys.readouterr().out
    assert "| good | fine |" in out and "left with 1: jaxllm: RESOURCE_EXHAUSTED" in out
    assert run(tmp_path, tmp_path / "work", seconds=100, only=["good"], small=False) == 1  # the table still has both


def test_a_case_that_hangs_and_one_without_time_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result_of(["sleep", "9"], {}, 0.2, tmp_path / "log") == {"error": "not done after 0 s"}
    cases(monkeypatch, {"late": "raise SystemExit(1)"}, tmp_path)
    assert run(tmp_path, tmp_path / "work", seconds=10, only=[], small=False) == 0
    assert "late: no time left" in capsys.readouterr().out


def test_the_table_has_a_row_for_each() -> None:
    found = json.loads('{"device": "x", "speed": 1234.5, "step": 0.5, "mfu": 0.5512, "losses": [2.0, 1.0]}')
    assert table({"a": found, "b": {"error": "none"}})[2:] == [
        "| a | x | 1,234 | 0.5000 | 55.1% |  |  | 2.0000, 1.0000 |",
        "| b | none | | | | | | |",
    ]


def test_a_misspelt_case_is_refused() -> None:
    command = [sys.executable, "tools/accelerator.py", "run", "--only", "llama_1b3_4k"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "llama_1b3_4k: not among" in done.stderr and "Traceback" not in done.stderr
