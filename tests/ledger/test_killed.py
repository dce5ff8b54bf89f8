"""Real processes, really killed: what was acknowledged is there, what is there is whole."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxllm.ledger.journal import Journal, read_journal
from jaxllm.ledger.losses import NEVER, LossLog
from jaxllm.ledger.records import StepLog, read_steps
from tests.ledger.test_records import record

# Goes on from what is there and says what is safe: "a N" appended, "s N" synced, "l N" losses flushed, "j N" an event.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.losses import LossLog
from jaxllm.ledger.records import StepLog
from tests.ledger.test_records import record
folder = Path(sys.argv[1])
steps, journal = StepLog(folder / "steps", 20), Journal(folder / "journal.jsonl")
losses = LossLog(folder / "losses", positions=1 << 20, lineage=0)
say = lambda what, n: sys.stdout.write(f"{what} {n}\\n") and sys.stdout.flush()
last = max((r.step for r in steps.recorded_after(0, 0)), default=0)
say("up", last)
for step in range(last + 1, 10**6):
    steps.append(record(step))
    say("a", step)
    losses.write(16 * (step - 1), np.arange(16, dtype=np.float32) + step, np.full(16, step, np.int32))
    if step % 7 == 0:
        steps.sync()
        say("s", step)
    if step % 5 == 0:
        losses.flush()
        say("l", step)
    if step % 11 == 0:
        journal.append("refused", lineage=0, step=step)
        say("j", step)
"""


# A log that hands over a record only after three more: what it says is appended dies with the process.
LATE = """
from jaxllm.ledger.records import StepLog
held, honest = [], StepLog.append
def late(self, one):
    held.append(one)
    if len(held) > 3:
        honest(self, held.pop(0))
StepLog.append = late
"""


def kill_after(folder: Path, steps: int, seconds: float, mutation: str = "") -> dict[str, int]:
    """Start a writer, kill it `seconds` after its record number `steps`; the last number it said of each kind."""
    command = [sys.executable, "-c", mutation + WRITER, str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    lines = [writer.stdout.readline()]
    while sum(line.startswith("a ") for line in lines) < steps:
        lines.append(writer.stdout.readline())
        assert lines[-1], "the writer ended by itself"
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    lines += writer.communicate()[0].splitlines(keepends=True)
    assert writer.returncode == -signal.SIGKILL
    said: dict[str, int] = {}
    for line in lines:
        if line.endswith("\n"):
            what, number = line.split()
            said[what] = int(number)
    return said


def problems(folder: Path, said: dict[str, int], before: int) -> list[str]:
    """What of the promises was not kept. before: records that were there when the writer started."""
    found = []
    read = list(read_steps(folder / "steps"))
    if read != [record(s) for s in range(1, len(read) + 1)]:
        found.append("a record is not what was written")
    if len(read) < max(said.get("s", 0), said.get("a", 0), before):
        found.append(f"{len(read)} records are left of {said.get('a', 0)}")
    if max((e["step"] for e in read_journal(folder / "journal.jsonl")), default=0) < said.get("j", 0):
        found.append("an event is lost")
    sums, tokens = LossLog(folder / "losses", 1 << 20, 0).read(0, 1 << 20)
    step = np.arange(1 << 20) // 16 + 1
    seen = tokens != NEVER  # what an earlier victim had not flushed stays unseen: it is not computed again here
    if not np.array_equal(tokens[seen], step[seen]) or not np.array_equal(
        sums[seen], (np.arange(1 << 20) % 16 + step)[seen]
    ):
        found.append("a loss is not what was written")
    if not seen[16 * before : 16 * said.get("l", before)].all():
        found.append("a loss is lost")
    return found


@pytest.mark.slow
def test_killed_writers_lose_nothing_and_tear_nothing(tmp_path: Path) -> None:
    dice, before = random.Random(1), 0
    for _ in range(8):
        said = kill_after(tmp_path, dice.randrange(20), dice.uniform(0.0, 0.03))
        assert problems(tmp_path, said, before) == []
        before = len(list(read_steps(tmp_path / "steps")))
    assert before > 20
    with Journal(tmp_path / "journal.jsonl") as journal, StepLog(tmp_path / "steps", 20) as log:
        journal.append("refused", lineage=0, step=before)
        log.append(record(before + 1))
    assert len(list(read_steps(tmp_path / "steps"))) == before + 1


@pytest.mark.slow
def test_a_log_that_keeps_records_to_itself_is_caught(tmp_path: Path) -> None:
    said = kill_after(tmp_path, 30, 0.0, LATE)
    assert [p for p in problems(tmp_path, said, 0) if "records are left" in p]
