import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.core.errors import RunError
from jaxllm.ledger.lease import Lease

HOLDER = """
import sys, time
from jaxllm.ledger.lease import Lease
lease = Lease.acquire(sys.argv[1])
print(lease.fence, flush=True)
time.sleep(600)
"""

# A data worker made by fork: it lives on when its trainer is killed.
FORKER = """
import os, sys, time
from jaxllm.ledger.lease import Lease
lease = Lease.acquire(sys.argv[1])
child = os.fork()
if child == 0:
    lease.release()  # not its own: nothing happens
    print(os.getpid(), flush=True)  # by itself: its parent may go on before it has left the fork
time.sleep(600)
"""


def start(code: str, folder: Path) -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_fences_grow_and_the_note_says_who(tmp_path: Path) -> None:
    for fence in (1, 2, 3):
        with Lease.acquire(tmp_path / "runs" / "x") as lease:
            assert lease.fence == fence
            note = json.loads((tmp_path / "runs" / "x" / "lease.json").read_text())
            assert (note["pid"], note["fence"], note["released"]) == (os.getpid(), fence, False)
            lease.check()
        assert json.loads((tmp_path / "runs" / "x" / "lease.json").read_text())["released"] is True
    with pytest.raises(RunError, match="released"):
        lease.check()
    lease.release()


def test_a_second_writer_is_refused_in_this_process_too(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease:
        with pytest.raises(RunError, match=rf"written by process {os.getpid()} on .* since .* \(fence 1\); wait"):
            Lease.acquire(tmp_path)
        lease.check()
    Lease.acquire(tmp_path).release()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    fence = 0
    for _ in range(3):
        holder, taken = start(HOLDER, tmp_path)
        assert taken == fence + 1
        since = json.loads((tmp_path / "lease.json").read_text())["since"]
        with pytest.raises(RunError, match=f"process {holder.pid} on .* since {since}"):
            Lease.acquire(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        with Lease.acquire(tmp_path) as lease:
            assert lease.fence == taken + 1
            fence = lease.fence


def test_a_forked_child_that_outlives_the_holder_holds_nothing(tmp_path: Path) -> None:
    holder, child = start(FORKER, tmp_path)
    try:
        with pytest.raises(RunError, match=f"process {holder.pid}"):  # the child's release was none
            Lease.acquire(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)
        with Lease.acquire(tmp_path) as lease:
            assert lease.fence == 2
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_a_holder_between_lock_and_note_is_not_given_a_wrong_name(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    note = tmp_path / "lease.json"
    for text in (None, json.dumps({**json.loads(note.read_text()), "released": True})):
        note.unlink(missing_ok=True)
        if text is not None:
            note.write_text(text)
        with pytest.raises(RunError, match="a process that has just begun"):
            Lease.acquire(tmp_path)
    lease.release()


def test_a_run_taken_over_is_noticed_by_its_old_holder(tmp_path: Path) -> None:
    old = Lease.acquire(tmp_path)
    (tmp_path / "lease.lock").unlink()  # what nobody should do
    with Lease.acquire(tmp_path) as new:
        assert new.fence == 2
        with pytest.raises(RunError, match=r"fence 2\) took over while this process held it \(fence 1\)"):
            old.check()
        old.release()
        new.check()
    assert json.loads((tmp_path / "lease.json").read_text())["fence"] == 2
