"""Step -> documents, against the batch that the step really gets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from jaxllm.core.errors import RunError
from jaxllm.data.batch import host_batch
from jaxllm.data.config import Data
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger import trace as trace_module
from jaxllm.ledger.trace import documents_of_step
from tests.ledger.small_run import DATA, DISJOINT, SEED, STEPS, STORE


def assert_traces_the_batch(data: Data, step: int) -> None:
    """Row by row: the spans are the row's tokens, in order and without a gap, and their documents own those tokens."""
    stream, table = stream_of_run(data, SEED, STORE)
    batch = host_batch(STORE, stream, table, data, step)
    rows = documents_of_step(STORE, data, SEED, step)
    assert [r.row for r in rows] == list(range(batch.sequences))
    assert [r.position for r in rows] == list(range(batch.cursor, batch.cursor + batch.sequences))
    for r in rows:
        reader = STORE.sources[r.source]
        tokens = np.concatenate([reader.read(s.start, s.stop) for s in r.spans])
        assert tokens[: data.seq_len].tolist() == batch.arrays["inputs"][r.row].tolist()
        segments = np.concatenate([[i] * (s.row_stop - s.row_start) for i, s in enumerate(r.spans)])
        assert segments[: data.seq_len].tolist() == batch.arrays["segments"][r.row].tolist()
        assert [s.row_start for s in r.spans] == [0, *(s.row_stop for s in r.spans[:-1])]
        for s in r.spans:
            document = reader.document(s.document)
            assert s.id == document.id
            assert document.start <= s.start < s.stop <= document.stop
            assert s.stop - s.start == s.row_stop - s.row_start
            assert (s.document_start, s.document_tokens) == (s.start - document.start, document.stop - document.start)


@pytest.mark.parametrize("data", [DATA, DISJOINT], ids=["shared", "disjoint"])
def test_every_step_traces_to_what_it_consumes(data: Data) -> None:
    for step in range(1, STEPS + 1):
        assert_traces_the_batch(data, step)


def test_epochs_are_told_apart() -> None:
    epochs = {(r.source, r.epoch) for step in range(1, STEPS + 1) for r in documents_of_step(STORE, DATA, SEED, step)}
    assert {("a", 0), ("b", 0), ("b", 1), ("b", 2)} <= epochs
    assert ("a", 1) not in epochs


def test_trace_is_json() -> None:
    rows = [asdict(r) for r in documents_of_step(STORE, DATA, SEED, 1)]
    assert json.loads(json.dumps(rows))[0]["spans"][0].keys() == rows[0]["spans"][0].keys()


@pytest.mark.parametrize("step", [0, STEPS + 1])
def test_steps_that_the_run_does_not_have(step: int) -> None:
    with pytest.raises(RunError, match="1 to 21"):
        documents_of_step(STORE, DATA, SEED, step)


def test_mutation_window_beside_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = trace_module.spans_of_window
    monkeypatch.setattr(
        trace_module, "spans_of_window", lambda reader, data, window: honest(reader, data, max(window - 1, 0))
    )
    with pytest.raises(AssertionError):
        assert_traces_the_batch(DATA, 1)


def test_mutation_another_seed_or_length() -> None:
    honest = documents_of_step(STORE, DATA, SEED, 5)
    assert honest != documents_of_step(STORE, DATA, SEED + 1, 5)
    assert honest != documents_of_step(STORE, replace(DATA, seq_len=16), SEED, 5)
