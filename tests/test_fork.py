"""Forks: bitwise the parent where nothing was amended, and other data in exactly one document's places."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm.compare.lines import lines
from jaxllm.compare.page import page
from jaxllm.compare.values import agrees, as_json, compare_runs
from jaxllm.core.errors import EXIT_DONE, ConfigError, DataError, RunError
from jaxllm.data import batch as batch_module
from jaxllm.data.batch import HostBatch, host_batch
from jaxllm.data.config import Data
from jaxllm.data.stream import stream_of_run
from jaxllm.forking import fork
from jaxllm.ledger.find import steps_of_document
from jaxllm.ledger.history import history
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import compare
from jaxllm.release.outcome import replay_run
from jaxllm.workspace import open_config, open_run, open_store
from tests.trained import KEPT, golden, trained

pytestmark = pytest.mark.slow

AT = 24


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(*golden(tmp_path_factory.mktemp("fork"), KEPT))


def finish(folder: Path) -> str:
    (digest,) = [e["digest"] for e in read_journal(folder / "journal.jsonl") if e["event"] == "finish"]
    return str(digest)


def document_of_later(parent: Path) -> str:
    """The id of one with text on both sides of it in a row of a later step."""
    from jaxllm.ledger.trace import documents_of_step

    run, store = open_store(open_run(parent), parent)
    for step in range(AT + 2, run.steps + 1):
        for row in documents_of_step(store, run.data, run.seed, step):
            if len(row.spans) >= 3:
                return row.spans[1].id
    raise AssertionError("no row of three documents")


def steps_in(spans: Iterable[tuple[int, int]]) -> set[int]:
    return {step for first, last in spans for step in range(first, last + 1)}


def batches(folder: Path, **data: Any) -> dict[int, HostBatch]:
    import dataclasses

    run, store = open_store(open_run(folder), folder)
    changed: Data = dataclasses.replace(run.data, **data)
    stream, table = stream_of_run(changed, run.seed, store)
    return {s: host_batch(store, stream, table, changed, s) for s in range(1, run.steps + 1)}


def test_a_fork_without_amendments_is_its_parent(parent: Path, tmp_path: Path) -> None:
    said = fork(parent, AT, tmp_path / "same")
    assert said["changes"] == []
    child = trained(*open_config(str(tmp_path / "same")))
    assert finish(child) == finish(parent)
    theirs = {r.step: r for r in history(parent)}
    mine = list(history(child))
    assert agrees(compare_runs(parent, child), "bitwise")
    assert [r.step for r in mine] == list(range(AT + 1, 41))
    assert all(compare(theirs[r.step], r) == [] for r in mine)
    found, code = replay_run(child, AT, 40, mesh=None, expect=None, lineage=None)
    assert code == EXIT_DONE and found.agreement.found == "bitwise"


def test_a_fork_is_judged_by_what_its_parent_saw(parent: Path, tmp_path: Path) -> None:
    """A spike right behind the fork is refused in both, which takes the history of the parent."""
    cached = Path(open_run(parent).io.data_cache).parent
    spike = 'faults=[{"kind":"HugeBatch","step":27}]'
    refuse = ['guard.spikes.action={"kind":"Refuse"}', "guard.spikes.min_history=8", "guard.spikes.window=16"]
    whole = trained(*golden(cached, KEPT, spike, *refuse, root=tmp_path / "whole"))
    fork(whole, AT, tmp_path / "forked")
    child = trained(*open_config(str(tmp_path / "forked")))
    assert [r.step for r in history(child) if r.refused] == [27]
    assert finish(child) == finish(whole)


def test_a_source_and_a_document_of_it_together_are_the_source(parent: Path, tmp_path: Path) -> None:
    run, store = open_store(open_run(parent), parent)
    document = store.sources["code"].document(0).id
    fork(parent, AT, tmp_path / "both", sources=["code"], documents=[document])
    fork(parent, AT, tmp_path / "source", sources=["code"])
    one, other = (batches(tmp_path / name) for name in ("both", "source"))
    elsewhere = [name for name in store.sources if name != "code" and store.sources[name].find(document) is not None]
    assert elsewhere or [b.lanes for b in one.values()] == [b.lanes for b in other.values()]
    code = [s.name for s in stream_of_run(run.data, run.seed, store)[0].sources].index("code")
    stream, table = stream_of_run(open_run(tmp_path / "both").data, run.seed, store)
    for step in range(AT + 1, run.steps + 1):
        first, size, _ = table.span(step)
        of_code = stream.rows(np.arange(first, first + size)).source == code
        assert not one[step].arrays["loss_mask"][of_code].any()


@pytest.mark.parametrize("attention", ["document", "window"])
def test_only_the_places_of_the_document_differ(attention: str, parent: Path, tmp_path: Path) -> None:
    document = document_of_later(parent)
    fork(parent, AT, tmp_path / "without", documents=[document])
    run, store = open_store(open_run(tmp_path / "without"), tmp_path / "without")
    before = batches(parent, attention=attention)
    after = batches(tmp_path / "without", attention=attention)
    found = steps_of_document(store, run.data, run.seed, document)
    places = {(s.step, s.row, t) for s in found.sightings for t in range(s.row_start, s.row_stop)}
    assert any(s > AT for s, _, _ in places)
    assert {s.removed for s in found.sightings if s.step > AT} == {True}
    assert {s.removed for s in found.sightings if s.step <= AT} <= {False}
    S = run.data.seq_len
    for step in before:
        old, new = before[step].arrays, after[step].arrays
        there = np.zeros((before[step].sequences, S + 1), bool)
        for at, row, token in places:
            if at == step > AT:
                there[row, token] = True
        # Token t of a window is input t and label t - 1.
        assert np.array_equal(new["inputs"], np.where(there[:, :S], store.end_of_text_id, old["inputs"]))
        assert np.array_equal(new["labels"], np.where(there[:, 1:], store.end_of_text_id, old["labels"]))
        assert np.array_equal(new["loss_mask"], old["loss_mask"] & ~there[:, 1:] & ~there[:, :S])
        assert np.array_equal(new["positions"], old["positions"])
        seen_old, seen_new = (a["segments"][:, :, None] == a["segments"][:, None, :] for a in (old, new))
        apart = there[:, :S, None] != there[:, None, :S]
        assert np.array_equal(seen_new, seen_old & ~apart), "nothing attends to it, all else sees what it saw"
        assert (before[step].lanes != after[step].lanes) == bool(there.any())


def test_training_goes_the_parents_way_up_to_the_first_place(parent: Path, tmp_path: Path) -> None:
    document = document_of_later(parent)
    fork(parent, AT, tmp_path / "without", documents=[document])
    child = trained(*open_config(str(tmp_path / "without")))
    run, store = open_store(open_run(child), child)
    found = steps_of_document(store, run.data, run.seed, document)
    first = min(s.step for s in found.sightings if s.step > AT)
    theirs = {r.step: r for r in history(parent)}
    parted = [r.step for r in history(child) if compare(theirs[r.step], r)]
    assert parted and parted[0] == first
    assert finish(child) != finish(parent)
    compared = compare_runs(parent, child)
    told = as_json(compared)
    assert told["relation"] == f"{child} is a fork of {parent}, from step {AT} on"
    assert told["first_difference"]["data"] == told["first_difference"]["loss"] == first
    assert told["rows"]["count"] == len({s.row for s in found.sightings if s.step == first})
    assert all(row["second"].endswith(f" without {document}") for row in told["rows"]["shown"])
    assert told["class"] == "different" and not agrees(compared, "rounding")
    assert any("data.without" in line for line in told["config"]["identity"])
    assert any(f"data: other from step {first} on" in line for line in lines(compared))
    places = [s for s in found.sightings if s.step > AT]
    gone = told["removed"]  # one for every source that has it
    assert {(p["run"], p["document"]) for p in gone} == {(2, document)}
    assert sum(p["rows"] for p in gone) == len(places)
    assert sum(p["tokens"] for p in gone) == sum(s.row_stop - s.row_start for s in places)
    assert steps_in(span for p in gone for span in p["steps"]) == {s.step for s in places}
    assert steps_in(told["steps_with_other_data"]["spans"]) == {s.step for s in places}
    assert told["removed_account_for_data"]
    text = page(compared)
    assert f"step {first}: data, loss" in text and f"step {AT}: fork, config" in text
    assert f"without {document}" in text and "are these steps and no others" in text


def test_a_mask_that_is_not_applied_is_seen(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = batch_module._arrays
    monkeypatch.setattr(batch_module, "_arrays", lambda tokens, opens, data, gone=None: real(tokens, opens, data))
    with pytest.raises(AssertionError):
        test_only_the_places_of_the_document_differ("window", parent, tmp_path)


def test_a_source_can_be_left_out_and_amendments_are_recorded(parent: Path, tmp_path: Path) -> None:
    said = fork(parent, AT, tmp_path / "f", sources=["code"], overrides=["optimizer.clip_norm=0.5"])
    assert "optimizer.clip_norm: 1.0 -> 0.5" in said["changes"] and len(said["changes"]) == 2
    fork(parent, AT, tmp_path / "gentle", overrides=["optimizer.clip_norm=0.01"])
    gentle = trained(*open_config(str(tmp_path / "gentle")))
    assert compare_runs(parent, gentle).class_ == "different", "on purpose, which is not rounding"
    (event,) = [e for e in read_journal(tmp_path / "f" / "journal.jsonl") if e["event"] == "fork"]
    assert event["changes"] == said["changes"] and event["origin"]["run"] == parent.name
    run, store = open_store(open_run(tmp_path / "f"), tmp_path / "f")
    stream, table = stream_of_run(run.data, run.seed, store)
    rows = stream.rows(np.arange(*(table.consumed(s) for s in (AT, AT + 1))))
    of_code = rows.source == [s.name for s in stream.sources].index("code")
    mask = host_batch(store, stream, table, run.data, AT + 1).arrays["loss_mask"]
    assert of_code.any() and not mask[of_code].any() and mask[~of_code].all(axis=None)


@pytest.mark.parametrize(
    "how, error, words",
    [
        ({"at": 9}, RunError, "no checkpoint 9"),
        ({"documents": ["nope"]}, DataError, "no document 'nope'"),
        ({"sources": ["cod"]}, DataError, "did you mean 'code'"),
        ({"overrides": ["model.width=64"]}, RunError, "width: 32 -> 64"),
        ({"overrides": ["data.stages.0.batch_size=4"]}, RunError, "change what comes after step 24 only"),
        ({"overrides": ["optimizer.clipnorm=4"]}, ConfigError, "clip_norm"),
        ({"overrides": ["data.stages.1.steps=0"]}, ConfigError, "at least 1"),
        ({"overrides": ["name=other"]}, RunError, "named by --out"),
        ({"at": 40}, RunError, "the run ends at step 40"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    how: dict[str, Any], error: type[Exception], words: str, parent: Path, tmp_path: Path
) -> None:
    arguments = {"at": AT, **how}
    with pytest.raises(error, match=words):
        fork(parent, arguments.pop("at"), tmp_path / "f", **arguments)
    assert list(tmp_path.iterdir()) == []
