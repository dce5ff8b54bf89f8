"""A run that goes wrong and goes back: by every policy, with the data that its edits say, killed anywhere."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm import app, standing
from jaxllm.checkpoint.layout import abandoned, list_steps
from jaxllm.core.errors import EXIT_DONE, EXIT_GUARD_STOPPED
from jaxllm.core.mixing import hex_lanes
from jaxllm.data.batch import host_batch
from jaxllm.data.steps import StepTable
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.find import steps_of_document
from jaxllm.ledger.history import history, lineages_of, losses_along
from jaxllm.ledger.journal import Journal, read_journal
from jaxllm.ledger.lineage import Stretch
from jaxllm.ledger.records import StepLog
from jaxllm.ledger.trace import documents_of_step
from jaxllm.release.outcome import replay_run
from jaxllm.report.facts import gather
from jaxllm.report.page import page
from jaxllm.run import RunConfig
from jaxllm.workspace import open_run, open_store
from tests.trained import KEPT, golden
from tools.kill_test import differences, harvest

pytestmark = pytest.mark.slow

JUDGED = ("guard.spikes.min_history=8", "guard.spikes.window=16")
SPIKE = 20  # in the first stage, of 24 steps; checkpoints every 8


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


def spiky(caches: Path, root: Path, *more: str, patience: int = 0) -> tuple[RunConfig, Path]:
    return golden(caches, *JUDGED, f"guard.spikes.recover_within={patience}", *more, root=root)


def train(caches: Path, root: Path, *more: str, patience: int = 0) -> tuple[Path, int]:
    run, folder = spiky(caches, root, *more, patience=patience)
    return folder, app.train(run, folder, stop_at=None, profile=None, as_json=False)


def faults(*some: dict[str, Any]) -> str:
    return "faults=" + json.dumps(some)


def huge(step: int = SPIKE, **more: Any) -> dict[str, Any]:
    return {"kind": "HugeBatch", "step": step, **more}


def rewind(data: str) -> str:
    return "guard.spikes.action=" + json.dumps({"kind": "Rewind", "data": data})


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [e for e in read_journal(folder / "journal.jsonl") if e["event"] in kinds]


def recomputed(folder: Path, lineage: int | None = None) -> dict[int, str]:
    """The batch digest of every step of a lineage, from the store and the journal alone."""
    run, store = open_store(open_run(folder), folder)
    stream, table = stream_of_run(run.data, run.seed, store, lineages_of(folder).edits(lineage))
    return {s: hex_lanes(host_batch(store, stream, table, run.data, s).lanes) for s in range(1, run.steps + 1)}


@pytest.fixture(scope="module")
def skipped(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, code = train(caches, tmp_path_factory.mktemp("skipped"), faults(huge()), rewind("skip_batch"))
    assert code == EXIT_DONE
    return folder


def test_the_run_goes_back_and_on_as_a_new_lineage_and_the_old_one_stays(skipped: Path) -> None:
    (back,) = events(skipped, "rollback")
    assert (back["step"], back["last"], back["parent"], back["lineage"], back["by"]) == (16, SPIKE, 0, 1, "guard")
    assert lineages_of(skipped).path() == (Stretch(0, 1, 16), Stretch(1, 17, None))
    old, new = list(history(skipped, lineage=0)), list(history(skipped))
    assert [r.step for r in old] == list(range(1, SPIKE + 1))
    assert [r.step for r in new] == list(range(1, 41)) and {r.lineage for r in new} == {0, 1}
    assert (old[SPIKE - 1].loss or 0) > 50
    assert max(r.loss or 0 for r in new) < 10
    assert [e["step"] for e in events(skipped, "spike")] == [SPIKE]


@pytest.mark.parametrize("data", ["skip_batch", "skip_window", "defer_batch"])
def test_what_is_consumed_from_then_on_is_what_the_edits_say(
    data: str, skipped: Path, caches: Path, tmp_path: Path
) -> None:
    folder = skipped
    if data != "skip_batch":
        # The deferred batch is as bad at the end of its stage, where it is left out.
        folder, code = train(caches, tmp_path, faults(huge()), rewind(data))
        assert code == EXIT_DONE
    run = open_run(folder)
    for lineage in range(lineages_of(folder).live + 1):
        says = recomputed(folder, lineage)
        assert all(says[r.step] == r.batch for r in history(folder, lineage))
    first = lineages_of(folder).branches[1].edits[0]
    size = run.data.stages[0].batch_size
    assert (first.first, first.count) == {
        "skip_batch": ((SPIKE - 1) * size, size),
        "skip_window": (16 * size, 4 * size),
        "defer_batch": ((SPIKE - 1) * size, size),
    }[data]
    unedited = recomputed(skipped, 0)
    moved = [r.step for r in history(folder) if r.batch != unedited[r.step]]
    assert moved == list(range(first.first // size + 1, 25))  # to the end of the stage and not a step further
    bad = unedited[SPIKE]
    assert bad not in [r.batch for r in history(folder)]


@pytest.mark.parametrize("data", ["skip_window", "skip_batch"])
def test_a_run_that_was_stopped_goes_back_to_where_one_that_was_not_does(
    data: str, skipped: Path, caches: Path, tmp_path: Path
) -> None:
    """The checkpoint of the stop lies between the scheduled one and the spike."""
    whole = skipped if data == "skip_batch" else train(caches, tmp_path / "whole", faults(huge()), rewind(data))[0]
    run, folder = spiky(caches, tmp_path / "stopped", faults(huge()), rewind(data))
    for stop_at in (17, 18, 19, None):
        assert app.train(run, folder, stop_at=stop_at, profile=None, as_json=False) == EXIT_DONE
    assert [e["step"] for e in events(folder, "rollback")] == [16]
    assert differences(harvest(whole), harvest(folder)) == []


def test_batches_that_were_deferred_and_are_as_bad_again_are_left_out(caches: Path, tmp_path: Path) -> None:
    """Two of them would change places at the end of the stage for ever."""
    folder, code = train(caches, tmp_path, faults(huge(18), huge(20)), rewind("defer_batch"), "guard.max_rollbacks=9")
    assert code == EXIT_DONE
    unedited, used = recomputed(folder, 0), [r.batch for r in history(folder)]
    assert not {unedited[18], unedited[20]} & set(used) and len(events(folder, "rollback")) == 4
    kinds = [e["edits"][0]["kind"] for e in events(folder, "rollback")]
    assert kinds == ["defer", "defer", "skip", "skip"]


def test_going_back_to_the_beginning_minds_no_quarantine(caches: Path, tmp_path: Path) -> None:
    aside = tmp_path / "golden" / "checkpoints" / "quarantine" / "00000004-1"
    run, folder = spiky(caches, tmp_path, faults(huge(12)), rewind("skip_batch"), "checkpoints.every_steps=16")
    assert app.train(run, folder, stop_at=5, profile=None, as_json=False) == EXIT_DONE
    aside.mkdir(parents=True)
    assert app.train(run, folder, stop_at=None, profile=None, as_json=False) == EXIT_DONE
    assert [e["step"] for e in events(folder, "rollback")] == [0]
    assert all(recomputed(folder)[r.step] == r.batch for r in history(folder))


def test_a_checkpoint_that_retention_took_is_not_gone_back_behind(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has been somewhere does not begin anew because what it could go back to is gone."""
    monkeypatch.setattr(standing.CheckpointStore, "steps", lambda self: [])
    folder, code = train(caches, tmp_path, faults(huge()), rewind("replay"))
    assert code == EXIT_GUARD_STOPPED and not events(folder, "rollback")
    assert "no checkpoint before step 20" in events(folder, "guard_stop")[0]["why"]


def test_a_transient_fault_is_gone_when_the_same_data_is_replayed(caches: Path, tmp_path: Path) -> None:
    clean, _ = train(caches, tmp_path / "clean")
    nan = {"kind": "NanBatch", "step": 30, "transient": True}
    folder, code = train(
        caches,
        tmp_path / "struck",
        faults(nan),
        'guard.non_finite={"kind":"Rewind","data":"replay"}',
        "guard.keep_abandoned=false",
    )
    assert code == EXIT_DONE and [e["step"] for e in events(folder, "rollback")] == [24]
    digests = [events(f, "finish")[0]["digest"] for f in (clean, folder)]
    assert digests[0] == digests[1], "the run after going back is the run that was never struck"
    assert abandoned(folder / "checkpoints") == {}


def test_warnings_and_refusals_change_the_record_as_they_say(caches: Path, tmp_path: Path) -> None:
    warned, code = train(caches, tmp_path / "warn", faults(huge()), patience=2)
    assert code == EXIT_DONE and not events(warned, "rollback")
    assert [e["action"] for e in events(warned, "spike")] == ["warn"]
    assert [(e["spike"], e["step"]) for e in events(warned, "recovered")] == [(SPIKE, SPIKE + 1)]
    refused, code = train(caches, tmp_path / "refuse", faults(huge()), 'guard.spikes.action={"kind":"Refuse"}')
    assert code == EXIT_DONE and [e["step"] for e in events(refused, "refused")] == [SPIKE]
    records = {r.step: r for r in history(refused)}
    assert records[SPIKE].refused and records[SPIKE].loss is not None
    applied = {r.step: r for r in history(warned)}
    assert records[SPIKE + 1].loss_bits != applied[SPIKE + 1].loss_bits, "the update would have been seen"


def test_going_back_too_often_stops_the_run(caches: Path, tmp_path: Path) -> None:
    folder, code = train(caches, tmp_path, faults(huge()), rewind("replay"), "guard.max_rollbacks=2")
    assert code == EXIT_GUARD_STOPPED
    assert len(events(folder, "rollback")) == 2
    (stop,) = events(folder, "guard_stop")
    assert "went back 2 times" in stop["why"] and f"data step RUN {SPIKE}" in stop["why"]
    # Each lineage's checkpoints are apart from each other's.
    assert list_steps(folder / "checkpoints") == [8, 16]


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def deferred(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A glitch at step 20; the data of steps 17 to 20, seen since the checkpoint, goes to the end of its stage."""
    place = tmp_path_factory.mktemp("deferred")
    folder, code = train(caches, place, faults(huge(transient=True)), rewind("defer_window"), KEPT)
    assert code == EXIT_DONE
    return folder


def test_a_window_that_was_deferred_comes_at_the_end_of_its_stage(deferred: Path) -> None:
    (back,) = events(deferred, "rollback")
    assert (back["step"], back["last"], back["edits"]) == (16, SPIKE, [{"kind": "defer", "first": 256, "count": 64}])
    unedited, used = recomputed(deferred, 0), {r.step: r.batch for r in history(deferred)}
    moved = {17: 21, 18: 22, 19: 23, 20: 24, 21: 17, 22: 18, 23: 19, 24: 20}
    assert used == {step: unedited[moved.get(step, step)] for step in range(1, 41)}
    assert used == recomputed(deferred), "the store and the journal alone say so"
    assert max(r.loss or 0 for r in history(deferred)) < 10, "the data was not to blame"


def test_trace_and_find_follow_a_window_that_was_deferred(deferred: Path) -> None:
    run, store = open_store(open_run(deferred), deferred)
    lineages = lineages_of(deferred)
    old, new = ((store, run.data, run.seed, step, lineages.edits(n)) for n, step in ((0, 18), (1, 22)))
    rows = [[(r.row, r.source, r.window, r.spans) for r in documents_of_step(*at)] for at in (old, new)]
    assert rows[0] == rows[1] and len(rows[0]) == 16
    row, source, window, spans = rows[0][3]
    for lineage, step in ((0, 18), (1, 22)):
        edits = lineages.edits(lineage)
        found = steps_of_document(store, run.data, run.seed, spans[0].id, source=source, edits=edits)
        assert [s.step for s in found.sightings if (s.window, s.row) == (window, row) and s.step <= 24] == [step]


def test_steps_after_a_window_was_deferred_are_replayed_bitwise(deferred: Path) -> None:
    found, code = replay_run(deferred, 16, 32, mesh=None, expect=None, lineage=None)
    assert code == EXIT_DONE and found.agreement.found == "bitwise" and found.agreement.steps == 16


def test_killed_before_and_among_deferred_steps_is_never_killed(
    deferred: Path, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once when going back was journaled and not yet done, once when some of the deferred steps were recorded."""

    def dying(append: Callable[..., Any], at: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(self: Any, *a: Any, **kw: Any) -> Any:
            written = append(self, *a, **kw)
            if at(*a):
                raise KilledError
            return written

        return wrapped

    moments: list[tuple[type, Callable[..., bool]]] = [
        (Journal, lambda event: event == "rollback"),
        (StepLog, lambda record: (record.lineage, record.step) == (1, 22)),
    ]
    arguments = (faults(huge(transient=True)), rewind("defer_window"), KEPT)
    for kind, at in moments:
        with monkeypatch.context() as m, pytest.raises(KilledError):
            m.setattr(kind, "append", dying(kind.append, at))
            train(caches, tmp_path, *arguments)
    folder, code = train(caches, tmp_path, *arguments)
    assert code == EXIT_DONE and len(events(folder, "resume")) == 2
    assert differences(harvest(deferred), harvest(folder)) == []


def once(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """`first` when it is called first, at the start of the run; `then` from its second call on, while it goes back."""
    calls = count()
    return lambda *a, **kw: (then if next(calls) else first)(*a, **kw)


@pytest.mark.parametrize("moment", ["after the event", "while checkpoints move", "before the state is read"])
def test_killed_while_going_back_is_never_killed(
    moment: str, skipped: Path, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> Any:
        raise KilledError

    def dying_append(self: Journal, event: str, **fields: Any) -> Any:
        written = append(self, event, **fields)
        return die() if event == "rollback" else written

    append, abandon, restore = Journal.append, standing.layout.abandon, standing.CheckpointStore.restore_latest
    with monkeypatch.context() as m:
        if moment == "after the event":
            m.setattr(Journal, "append", dying_append)
        elif moment == "while checkpoints move":
            m.setattr(standing.layout, "abandon", once(abandon, die))
        else:
            m.setattr(standing.CheckpointStore, "restore_latest", once(restore, die))
        with pytest.raises(KilledError):
            train(caches, tmp_path, faults(huge()), rewind("skip_batch"))
    folder, code = train(caches, tmp_path, faults(huge()), rewind("skip_batch"))
    assert code == EXIT_DONE
    assert differences(harvest(skipped), harvest(folder)) == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_resumed_after_going_back_keeps_its_edits(
    lost: bool, skipped: Path, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the mutation: one that forgets what its journal says of the stream."""
    run, folder = spiky(caches, tmp_path, faults(huge()), rewind("skip_batch"))
    assert app.train(run, folder, stop_at=21, profile=None, as_json=False) == EXIT_DONE
    if lost:
        monkeypatch.setattr(standing, "stream_of_run", lambda d, seed, store, edits=(): stream_of_run(d, seed, store))
    assert app.train(run, folder, stop_at=None, profile=None, as_json=False) == EXIT_DONE
    found = differences(harvest(skipped), harvest(folder))
    assert any("step 22 differs" in text and "batch" in text for text in found) if lost else found == []


def test_a_copy_without_checkpoints_has_a_report_that_names_what_was_to_blame(skipped: Path, tmp_path: Path) -> None:
    """As one fetches a run from another machine, over the network."""
    shutil.copytree(skipped, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "lease*"))
    facts, whole = gather(tmp_path / "copy"), gather(skipped)
    (close_up,) = facts.close_ups
    assert (close_up.lineage, close_up.step) == (0, SPIKE) and close_up.rows == whole.close_ups[0].rows
    assert all(row.documents and (row.loss or 0) > 50 for row in close_up.rows)
    assert f"lineage 0, steps 17 to {SPIKE}: left" in page(facts)
    shutil.rmtree(tmp_path / "copy" / "losses")
    (close_up,) = gather(tmp_path / "copy").close_ups
    assert all(row.documents and not row.recorded for row in close_up.rows)


def test_losses_of_both_lineages_are_kept(skipped: Path) -> None:
    run = open_run(skipped)
    table, lineages = StepTable(run.data.stages), lineages_of(skipped)
    first, count, _ = table.span(SPIKE)
    old, _ = losses_along(skipped, table, lineages, first, first + count, lineage=0)
    new, tokens = losses_along(skipped, table, lineages, first, first + count)
    assert np.all(old / tokens > 50) and np.all(new / tokens < 10)
