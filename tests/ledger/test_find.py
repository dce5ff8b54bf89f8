"""Document -> steps agrees with step -> documents, for every document of a small store."""

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest

from jaxllm.core.errors import DataError
from jaxllm.data.config import Data
from jaxllm.data.stream import Stream
from jaxllm.data.windows import windows_in
from jaxllm.ledger.find import Found, steps_of_document
from jaxllm.ledger.trace import documents_of_step
from tests.data.fake_store import FakeReader, FakeStore
from tests.ledger.small_run import DATA, DISJOINT, SEED, STEPS, STORE

ROOT = Path(__file__).resolve().parents[2]
Seen = tuple[int, int, int, str, int, int, int, int, int, int]


def scanned(data: Data) -> dict[str, list[Seen]]:
    """Every span of every step, by document: what `find` must say without looking at the steps."""
    seen = defaultdict(list)
    for step in range(1, STEPS + 1):
        for r in documents_of_step(STORE, data, SEED, step):
            for s in r.spans:
                seen[s.id].append(
                    (step, r.row, r.position, r.source, r.epoch, r.window, s.row_start, s.row_stop, s.start, s.stop)
                )
    return seen


def assert_agree(data: Data) -> dict[str, Found]:
    seen, answers = scanned(data), {}
    for reader in STORE.sources.values():
        for number in range(reader.documents):
            document = reader.document(number)
            found = answers[document.id] = steps_of_document(STORE, data, SEED, document.id)
            assert [tuple(asdict(s).values()) for s in found.sightings] == [(*s, False) for s in seen[document.id]], (
                document
            )
            assert (found.never is None) == bool(seen[document.id])
    return answers


@pytest.mark.parametrize("data", [DATA, DISJOINT], ids=["shared", "disjoint"])
def test_find_and_trace_agree_on_every_document(data: Data) -> None:
    answers = assert_agree(data)
    seen = [f for f in answers.values() if f.sightings]
    # The small run has what it was made for.
    assert any(len({s.window for s in f.sightings}) > 4 for f in seen)
    assert any(len({s.epoch for s in f.sightings}) > 2 for f in seen)
    assert any(f.tail_tokens for f in answers.values())


@pytest.mark.parametrize("data", [DATA, DISJOINT], ids=["shared", "disjoint"])
def test_why_a_document_was_never_seen(data: Data) -> None:
    answers = assert_agree(data)
    told: dict[str, set[str]] = {}
    for name, reader in STORE.sources.items():
        read = windows_in(reader.tokens, data.seq_len, data.windows) * data.seq_len + (data.windows == "shared")
        kinds = told[name] = set()
        for number in range(reader.documents):
            document = reader.document(number)
            found = answers[document.id]
            if name == "c":
                assert found.never == "source 'c' is in no stage's mixture"
            elif document.start == document.stop:
                assert found.never == f"it has no tokens in source {name!r}"
                kinds.add("empty")
            elif document.start >= read:
                assert found.never == f"in the tail of source {name!r}, behind its last whole window"
                assert found.tail_tokens == document.stop - document.start
                kinds.add("tail")
            else:
                assert found.tail_tokens == max(document.stop - read, 0)
                if found.never:
                    assert found.never.startswith("not drawn: the run takes ")
                    kinds.add("not drawn")
    # The small run has what it was made for.
    assert told["b"] == {"empty", "tail"}
    assert {"empty", "not drawn"} <= told["a"]


def test_reasons_read_well() -> None:
    assert steps_of_document(STORE, DATA, SEED, "held-1").never == "held out of source 'held'"
    assert steps_of_document(STORE, DATA, SEED, "c-0").never == "source 'c' is in no stage's mixture"
    tail = FakeStore([FakeReader("a", [30, 170, 1]), FakeReader("b", [100])])
    found = steps_of_document(tail, DISJOINT, SEED, "a-2")
    assert found == Found(sightings=(), never="in the tail of source 'a', behind its last whole window", tail_tokens=1)


def test_unknown_documents_and_sources() -> None:
    with pytest.raises(DataError, match="no document 'x-1' in a, b, c, held"):
        steps_of_document(STORE, DATA, SEED, "x-1")
    with pytest.raises(DataError, match="no document 'a-1' in b"):
        steps_of_document(STORE, DATA, SEED, "a-1", source="b")
    with pytest.raises(DataError, match="no source 'd'; it has a, b, c, held"):
        steps_of_document(STORE, DATA, SEED, "a-1", source="d")


def test_a_source_can_be_named() -> None:
    assert steps_of_document(STORE, DATA, SEED, "b-3") == steps_of_document(STORE, DATA, SEED, "b-3", source="b")


def test_an_id_that_two_sources_share() -> None:
    class Same(FakeReader):
        def find(self, doc_id: str) -> int | None:
            return 1 if doc_id == "same" else None

    store = FakeStore([Same("a", [30, 20, 400]), Same("b", [40, 40])], [Same("a", [5, 5])])
    found = steps_of_document(store, DATA, SEED, "same")
    assert {s.source for s in found.sightings} == {"a", "b"}
    assert [(s.step, s.row) for s in found.sightings] == sorted((s.step, s.row) for s in found.sightings)
    assert found.never is None
    assert {s.source for s in steps_of_document(store, DATA, SEED, "same", source="a").sightings} == {"a"}


def test_answer_is_json() -> None:
    found = asdict(steps_of_document(STORE, DATA, SEED, "b-3"))
    assert json.loads(json.dumps(found))["sightings"][0]["step"] >= 1


def test_mutation_an_epoch_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Stream.uses
    monkeypatch.setattr(Stream, "uses", lambda self, k, windows: honest(self, k, windows)[:1])
    with pytest.raises(AssertionError):
        assert_agree(DATA)


def test_mutation_positions_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "positions_of", lambda self, sample: [max(sample - 1, 0)])
    with pytest.raises(AssertionError):
        assert_agree(DATA)


def test_answers_without_jax() -> None:
    script = (
        "import sys; from jaxllm.ledger.find import steps_of_document as f; "
        "from jaxllm.ledger.trace import documents_of_step as d; "
        "from tests.ledger.small_run import DATA, SEED, STORE; "
        "f(STORE, DATA, SEED, 'b-3'); d(STORE, DATA, SEED, 3); "
        "print(*(m for m in ('jax', 'jaxlib', 'flax', 'grain', 'orbax') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
