"""The bench on a config of seconds, as people start it."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.bench.figures import found_in

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/bench.py"), "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_real_loop_is_measured(tmp_path: Path) -> None:
    small = ["checkpoints.every_steps=6", "io.compilation_cache=null", f"io.data_cache={tmp_path}"]
    done = run("tests/golden/config.py:golden", *small, "logging.every_steps=1", "--steps", "10")
    assert done.returncode == 0, done.stderr
    found = found_in(done.stdout.splitlines())
    assert found.peer == "jaxllm" and "jax " in found.versions
    assert 3 <= len(found.seconds) <= 10 and found.saving is not None and found.waiting is not None
    assert found.losses[1] < found.losses[0] and 0 < found.share < 1.5
    assert found.compiling is not None and 0 < found.compiling < found.first
    assert found.cpu is not None and found.loop is not None and 0 < found.loop.own <= found.loop.cpu
    assert {"batch", "record", "judge"} <= {part.name for part in found.loop.parts}
    assert "of the CPU seconds" in done.stderr
    assert found.memory > 10**8 and max(found.seconds) < found.first


def test_a_config_that_does_not_write_every_step_is_refused() -> None:
    done = run("tests/golden/config.py:golden", "--steps", "1")
    assert done.returncode == 2 and "logging.every_steps=" in done.stderr and "Traceback" not in done.stderr
