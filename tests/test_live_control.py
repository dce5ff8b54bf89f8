"""What is asked of a run that is running: to the bit what comes of stopping it there, and asking; or nothing at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxllm import app, control
from jaxllm.asking import ask, roll_back, skip_steps
from jaxllm.attending import Attendant
from jaxllm.core.errors import EXIT_DONE, EXIT_SAVED_START_AGAIN, RunError
from jaxllm.ledger import requests
from jaxllm.ledger.history import history, lineages_of
from jaxllm.ledger.journal import Journal, read_journal
from jaxllm.ledger.lease import Lease
from jaxllm.ledger.requests import Rollback, Skip
from jaxllm.release.outcome import replay_run
from jaxllm.release.verify import verify_run
from jaxllm.standing import Standing
from jaxllm.train.engine import Engine
from tests.test_rollback import KilledError, recomputed
from tests.test_several_processes import CONFIG, Supervised
from tests.trained import KEPT, QUIET, golden, trained
from tools.kill_test import differences, harvest, last_step

pytestmark = pytest.mark.slow

SKIP = Skip(steps=(14, 15), defer=False, why="a look at it")
BACK = Rollback(to=16, data="defer", steps=(18, 19), why="they looked odd")
AT = {9: SKIP, 19: BACK}  # asked for once these steps are recorded, when the next ones are under way
LATE = Skip(steps=(3, 4), defer=False, why="")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "EVERY_SECONDS", 0.0)


class Asking:
    """Asks while a run is trained in this process. at: recorded step -> what. done: after which steps it was done."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, at: dict[int, Skip | Rollback]) -> None:
        self.done: list[int] = []
        self.filed: list[requests.Request] = []
        at, record, attend = dict(at), Engine.record, Attendant.attend

        def asks(engine: Engine, step: int, *a: Any) -> Any:
            recorded = record(engine, step, *a)
            if step in at:
                self.filed.append(requests.file(folder, at.pop(step)))
            return recorded

        def attends(attendant: Attendant, engine: Engine, step: int) -> Any:
            self.done.append(step)
            return attend(attendant, engine, step)

        patch.setattr(Engine, "record", asks)
        patch.setattr(Attendant, "attend", attends)


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [e for e in read_journal(folder / "journal.jsonl") if e["event"] in kinds]


def decisions(folder: Path) -> list[dict[str, Any]]:
    """The events by a person, without what tells one file or one moment from another."""
    own = ("seq", "time", "prev", "hash", "request", "asked")
    return [{k: v for k, v in e.items() if k not in own} for e in events(folder, "skip", "defer", "rollback")]


@pytest.fixture(scope="module")
def live(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Asking]:
    """A run of which a skip and a way back were asked while it ran, and in between what cannot be done."""
    run, folder = golden(caches, KEPT, root=tmp_path_factory.mktemp("live"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "EVERY_SECONDS", 0.0)
        asking = Asking(patch, folder, AT | {12: LATE})
        trained(run, folder)
    return folder, asking


def test_what_is_asked_of_a_running_run_is_what_is_asked_of_a_stopped_one(
    live: tuple[Path, Asking], caches: Path, tmp_path: Path
) -> None:
    folder, asking = live
    assert asking.done == [11, 14, 21], "after the steps that were under way"
    run, twin = golden(caches, KEPT, root=tmp_path)
    trained(run, twin, stop_at=11)
    skip_steps(twin, SKIP.steps, defer=False, why=SKIP.why)
    trained(run, twin, stop_at=21)
    roll_back(twin, BACK.to, kind=BACK.data, steps=BACK.steps, why=BACK.why)
    trained(run, twin)
    assert differences(harvest(folder), harvest(twin)) == []
    assert decisions(folder) == decisions(twin) and len(decisions(folder)) == 2
    assert [e["request"] for e in events(folder, "skip", "rollback")] == [asking.filed[0].id, asking.filed[2].id]
    assert {e["by"] for e in events(folder, "skip", "rollback")} == {"person"}


def test_such_a_run_holds_against_its_record(live: tuple[Path, Asking]) -> None:
    folder, _ = live
    for lineage in range(lineages_of(folder).live + 1):
        says = recomputed(folder, lineage)
        assert all(says[r.step] == r.batch for r in history(folder, lineage))
    assert [f.said for f in verify_run(folder, samples=20, seed=0) if f.holds is False] == []
    for start, stop, lineage in ((8, 16, None), (16, 24, None), (16, 20, 0)):
        found, code = replay_run(folder, start, stop, mesh=None, expect=None, lineage=lineage)
        assert code == EXIT_DONE and found.agreement.found == "bitwise"


def test_what_cannot_be_done_is_answered_as_it_is_to_a_stopped_run(live: tuple[Path, Asking]) -> None:
    folder, asking = live
    said = requests.answered(folder, asking.filed[1].id)
    assert said is not None and said.refused is not None
    assert said.refused.startswith(
        f"--steps 3:4: {folder} has executed 14 steps already; to have it forget what it saw"
    )
    assert requests.waiting(folder) == []


def test_a_feed_that_is_not_read_anew_would_be_seen(
    live: tuple[Path, Asking], caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: what was read ahead is used up, and the rest of the old stream with it."""
    run, folder = golden(caches, root=tmp_path)
    Asking(monkeypatch, folder, {9: SKIP})
    monkeypatch.setattr(Standing, "read_on", lambda self, engine, step: None)
    trained(run, folder, stop_at=16)
    whole = {r.step: r.batch for r in history(live[0], 0)}
    assert [r.step for r in history(folder) if r.batch != whole[r.step]] == [14, 15, 16]


def dying(work: Callable[..., Any], when: Callable[..., bool] = lambda *a: True) -> Callable[..., Any]:
    def wrapped(*a: Any, **kw: Any) -> Any:
        found = work(*a, **kw)
        if when(*a):
            raise KilledError
        return found

    return wrapped


def test_killed_anywhere_between_request_and_answer_is_never_killed(
    live: tuple[Path, Asking], caches: Path, tmp_path: Path
) -> None:
    """When the skip was taken up; when going back was journaled; and when the steps it came back to were recorded."""
    run, folder = golden(caches, KEPT, root=tmp_path)
    # Off schedule no checkpoint is near: steps that were recorded are executed again, before the request or after.
    moments: list[tuple[object, str, Callable[..., bool], dict[int, Skip | Rollback]]] = [
        (requests, "take", lambda *a: True, {9: SKIP}),
        (Journal, "append", lambda journal, event: event == "rollback", {19: BACK}),
        (Engine, "record", lambda engine, step, *a: step == 21, {}),
    ]
    for where, name, when, at in moments:
        with pytest.MonkeyPatch.context() as patch:
            Asking(patch, folder, at)
            patch.setattr(where, name, dying(getattr(where, name), when))
            with pytest.raises(KilledError):
                trained(run, folder)
    trained(run, folder)
    assert differences(harvest(live[0]), harvest(folder)) == []
    assert decisions(folder) == decisions(live[0]) and requests.waiting(folder) == []
    answers = [requests.answered(folder, e["request"]) for e in events(folder, "skip", "rollback")]
    assert [a.event for a in answers if a is not None] == [e["seq"] for e in events(folder, "skip", "rollback")]


def test_steps_that_a_killed_process_recorded_count_as_done(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = golden(caches, root=tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Engine, "record", dying(Engine.record, lambda engine, step, *a: step == 14))
        trained(run, folder)
    filed = [requests.file(folder, Skip(steps=(n, n), defer=False, why="")) for n in (14, 15)]
    trained(run, folder, stop_at=16)
    first, second = (requests.answered(folder, r.id) for r in filed)
    assert first is not None and "has executed 14 steps already" in str(first.refused)
    assert second is not None and second.event is not None
    assert not events(folder, "divergence") and all(recomputed(folder)[r.step] == r.batch for r in history(folder))


def test_what_is_no_request_disturbs_nothing(
    live: tuple[Path, Asking], caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = golden(caches, root=tmp_path)
    place = folder / "requests"
    place.mkdir(parents=True)
    (place / "20260101T000000000000-00000000.json").write_text('{"schema": 1, "asked": {"kind": "Rollback"}}')
    (place / "[bold].json").mkdir()
    (place / ("x" * 250 + ".json")).write_text("")  # as long as names can be: it cannot even be renamed
    (place / "other").write_text("")
    Asking(monkeypatch, folder, {9: Skip(steps=(14, 15), defer=False, why="[/red] is no markup")})
    trained(run, folder, stop_at=16)
    whole = {r.step: r for r in history(live[0], 0)}
    assert [r.losses for r in history(folder)] == [whole[s].losses for s in range(1, 17)]
    assert sorted(p.name for p in (place / "aside").iterdir() if p.suffix != ".why") == [
        "20260101T000000000000-00000000",
        "[bold]",
    ]


def test_a_finished_run_of_which_something_is_asked_is_taken_up_again(
    live: tuple[Path, Asking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from jaxllm.cli import app as commands

    folder = Path(shutil.copytree(live[0], tmp_path / live[0].name))
    requests.file(folder, Rollback(to=32, data=None, steps=None, why="once more"))
    monkeypatch.setattr(app, "finale", lambda *a, **kw: {})
    assert CliRunner().invoke(commands, ["train", str(folder)], catch_exceptions=False).exit_code == EXIT_DONE
    digests = [e["digest"] for e in events(folder, "finish")]
    assert len(digests) == 2 and digests[0] == digests[1], "the same data again is the same run again"
    assert CliRunner().invoke(commands, ["train", str(folder)]).stdout.startswith(f"{folder} is finished")


def test_stopped_where_it_went_back_to_the_run_tells_of_the_state_that_it_is_in(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of a later checkpoint, which it left."""
    run, folder = golden(caches, root=tmp_path)
    Asking(monkeypatch, folder, {17: Rollback(to=8, data=None, steps=None, why="")})
    attend = Attendant.attend

    def stopping(attendant: Attendant, engine: Engine, step: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return attend(attendant, engine, step)

    monkeypatch.setattr(Attendant, "attend", stopping)
    assert app.train(run, folder, stop_at=None, profile=None, as_json=True) == EXIT_SAVED_START_AGAIN
    told = json.loads(capsys.readouterr().out)
    saved = {e["step"]: e["digest"] for e in events(folder, "checkpoint")}
    assert (told["step"], told["digest"]) == (8, saved[8]) and list(saved) == [8, 16]


def test_a_command_that_fails_leaves_no_request_behind(tmp_path: Path, live: tuple[Path, Asking]) -> None:
    folder = Path(shutil.copytree(live[0], tmp_path / live[0].name))

    def say(text: str) -> None:
        raise BrokenPipeError

    with Lease.acquire(folder), pytest.raises(BrokenPipeError):
        roll_back(folder, 32, kind=None, say=say)
    assert requests.waiting(folder) == []


# ---- a command beside a trainer, each a process ----------------------------------------------------------------------


class Trainer:
    """A run in a process of its own, with more steps than it will come to."""

    def __init__(self, caches: Path, root: Path) -> None:
        self.folder = root / "golden"
        places = [f"io.data_cache={caches / 'data'}", f"io.compilation_cache={caches / 'xla'}", f"io.root={root}"]
        command = [sys.executable, "-m", "jaxllm", "train", CONFIG, *QUIET, *places, "data.stages.0.steps=100000"]
        command += ["checkpoints.keep_steps=[8]"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 240
        while last_step(self.folder) < 20:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0]
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def trainer(caches: Path, tmp_path: Path) -> Iterator[Trainer]:
    started = Trainer(caches, tmp_path)
    yield started
    started.kill()


def test_a_command_is_answered_withdrawn_or_does_it_itself_when_the_trainer_dies(trainer: Trainer) -> None:
    folder, said = trainer.folder, list[str]()
    event = skip_steps(folder, (90_000, 90_001), defer=True, timeout=60, say=said.append)
    assert event == events(folder, "defer")[0] and event["request"] and trainer.process.poll() is None
    assert f"process {trainer.process.pid} on" in said[0] and "Ctrl-C" in said[0]
    event = roll_back(folder, 8, kind=None, timeout=60)
    assert event == events(folder, "rollback")[0] and event["last"] >= 20
    with pytest.raises(RunError, match=r"--to 9: .* has no checkpoint 9 in its live lineage"):
        roll_back(folder, 9, kind=None, timeout=60)
    deadline = time.monotonic() + 60
    while max((r.step for r in history(folder)), default=0) < 12:  # it goes on, in the new lineage
        assert trainer.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(trainer.process.pid, signal.SIGSTOP)
    before = (folder / "journal.jsonl").read_bytes()
    for timeout, after, code in ((0.5, None, EXIT_SAVED_START_AGAIN), (60.0, 0.5, 130)):
        if after is not None:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(RunError, match="was withdrawn and nothing was changed") as err:
            skip_steps(folder, (90_010, 90_010), defer=False, timeout=timeout)
        assert err.value.exit_code == code and time.monotonic() - began < 10
        assert requests.waiting(folder) == [] and (folder / "journal.jsonl").read_bytes() == before
    threading.Timer(0.5, trainer.process.kill).start()
    event = ask(folder, Skip(steps=(90_020, 90_020), defer=False, why="by itself"), timeout=60, say=said.append)
    assert event == read_journal(folder / "journal.jsonl")[-1] and event["request"] and "been taken" not in said[-1]
    assert requests.waiting(folder) == [] and trainer.process.wait(60) == -signal.SIGKILL
    assert [f.said for f in verify_run(folder, samples=5, seed=0) if f.holds is False] == []


def test_a_start_waits_for_a_command_that_holds_the_run_for_a_moment(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path, brief=True)
    threading.Timer(0.3, lease.release).start()
    began = time.monotonic()
    with Lease.acquire(tmp_path, patience=20) as mine:
        assert mine.fence == 2 and time.monotonic() - began < 10
        with pytest.raises(RunError, match="is being written by process"):  # and for no trainer
            Lease.acquire(tmp_path, patience=20)
        assert time.monotonic() - began < 10
    with Lease.acquire(tmp_path, brief=True), pytest.raises(RunError, match="is being written by process"):
        Lease.acquire(tmp_path, patience=0.2)


def test_an_event_that_was_journaled_before_its_trainer_died_is_not_journaled_again(
    live: tuple[Path, Asking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote the event, and had no time to answer."""
    folder = Path(shutil.copytree(live[0], tmp_path / live[0].name))
    lease = Lease.acquire(folder)

    def dies(request: requests.Request) -> None:
        with Journal(folder / "journal.jsonl") as journal:
            assert requests.take(folder, request.id) is not None
            control.settle(request.asked, app.open_run(folder), folder, journal, request=request)
        lease.release()

    filed = requests.file

    def file(*a: Any) -> requests.Request:
        request = filed(*a)
        threading.Timer(0.3, dies, (request,)).start()
        return request

    monkeypatch.setattr(requests, "file", file)
    count = len(read_journal(folder / "journal.jsonl"))
    event = roll_back(folder, 32, kind="skip", timeout=60)
    assert len(read_journal(folder / "journal.jsonl")) == count + 1
    assert event == read_journal(folder / "journal.jsonl")[-1] and requests.waiting(folder) == []


# ---- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_do_what_is_asked_after_the_same_step(caches: Path, tmp_path: Path) -> None:
    """A skip that waits when they start, and a way back while they run."""
    places = [*QUIET, f"io.data_cache={caches / 'data'}", f"io.compilation_cache={caches / 'xla'}"]
    places += ["data.stages.0.steps=48", "checkpoints.every_steps=24", "checkpoints.keep_steps=[8]", "mesh.dp=2"]
    waits = requests.file(tmp_path / "golden", Skip(steps=(3, 4), defer=False, why="before the first step"))
    with Supervised(tmp_path, 2, *places, "--stop-at", "48") as run:
        slow = run.when_step(12)[1]
        os.kill(slow, signal.SIGSTOP)  # so that not too many steps pass until a request is looked for
        threading.Timer(1.5, os.kill, (slow, signal.SIGCONT)).start()
        event = roll_back(run.folder, 8, kind="skip", steps=(9, 9), timeout=120)
        code, said = run.end()
    assert code == EXIT_DONE, said
    assert events(run.folder, "skip")[0]["request"] == waits.id and events(run.folder, "rollback") == [event]
    assert not events(run.folder, "resume", "divergence")
    for lineage in (0, 1):
        says = recomputed(run.folder, lineage)
        assert all(says[r.step] == r.batch for r in history(run.folder, lineage))
    assert [r.step for r in history(run.folder)] == list(range(1, 49))
    assert [f.said for f in verify_run(run.folder, samples=20, seed=0) if f.holds is False] == []
    assert json.loads((run.folder / "lease.json").read_text())["fence"] == 1, "nobody else ever held it"
