"""SIGKILL at random moments of a process that saves in a loop: what is left is always a step, whole."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxllm.checkpoint import layout
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.store import CheckpointStore
from tests.checkpoint.states import abstract, digest, equal, make_items, save
from tests.simulated import ROOT, simulated_env

CONFIG = Checkpoints(every_steps=1, keep_latest=2, keep_every=10)
KILLS = 3  # 15 passed when this was written; tools/kill_test.py does hundreds, of whole runs


def victim(folder: str) -> None:
    """Go on from the newest step and save every step after it, until killed. Says each step that is durable."""
    with CheckpointStore(folder, CONFIG) as store:
        restored = store.restore_latest(abstract(make_items(0)), digest)
        step = 0 if restored is None else restored.step
        print("start", step, flush=True)
        while True:
            step += 1
            save(store, step, wait=False)
            for durable in store.finished():
                print("durable", durable, flush=True)


def run_and_kill(folder: Path, saves: int, patience: float) -> tuple[int, int]:
    """Kill `patience` seconds after that many saves: (the step it started from, the last one it called durable)."""
    code = f"from tests.checkpoint.test_kill import victim; victim({str(folder)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=simulated_env(1), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(1 + saves)]
    time.sleep(patience)
    process.send_signal(signal.SIGKILL)
    lines += process.communicate()[0].splitlines()
    assert process.returncode == -signal.SIGKILL, "it ended by itself"
    numbers = [int(line.split()[1]) for line in lines]
    return numbers[0], numbers[-1]


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    rng, reached, unfinished = random.Random(5), 0, 0
    for _ in range(KILLS):
        start, durable = run_and_kill(tmp_path, rng.randint(1, 4), rng.uniform(0.0, 0.2))
        assert start >= reached, "a step that was whole is gone"
        unfinished += len(list(tmp_path.glob(f"*{layout.UNFINISHED}*")) + list(tmp_path.glob(f"*{layout.RETIRED}")))
        for step in layout.list_steps(tmp_path):
            assert layout.is_whole(tmp_path, step)
        with CheckpointStore(tmp_path, CONFIG) as store:
            restored = store.restore_latest(abstract(make_items(0)), digest)
            assert restored is not None and equal(restored.items, make_items(restored.step))
            assert restored.cursor["step"] == restored.step >= durable
            assert not layout.quarantined(tmp_path)
            reached = restored.step
    assert reached > KILLS and unfinished > 0, "no kill hit a save"
