"""Batches against a reference that goes token by token, and their digest."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.core.errors import DataError
from jaxllm.core.mixing import add_lanes, batch_digest
from jaxllm.data import batch as batch_module
from jaxllm.data.batch import Arrays, HostBatch, assemble, flags, host_batch
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.data.stream import stream_of_run
from jaxllm.data.windows import span, windows_in
from tests.data.fake_store import FakeReader, FakeStore, document_lengths

S = 8
DATA = Data(
    store=StoreAt(path="nowhere"),
    seq_len=S,
    block=16,
    stages=(
        Stage(
            name="one",
            steps=7,
            batch_size=8,
            mixture=(Share(source="a", weight=0.7), Share(source="b", weight=0.3)),
        ),
        Stage(name="two", steps=3, batch_size=16, mixture=(Share(source="b", weight=1.0),)),
    ),
)
STORE = FakeStore([FakeReader("a", document_lengths(0, 60, 30)), FakeReader("b", document_lengths(1, 20, 40), 5000)])
VARIANTS = [
    replace(DATA, windows=windows, attention=attention, loss=loss)
    for windows in ("shared", "disjoint")
    for attention in ("document", "window")
    for loss in ("all", "document")
]


def reference_row(reader: FakeReader, window: int, data: Data) -> dict[str, list[int]]:
    """One row of a batch, a token at a time."""
    start, stop = span(window, data.seq_len, data.windows)
    tokens = reader.stream[start:stop].tolist()
    owner = np.repeat(np.arange(reader.documents), np.diff(reader.ends, prepend=0))[start:stop].tolist()
    row: dict[str, list[int]] = {name: [] for name in ("inputs", "labels", "segments", "positions", "loss_mask")}
    segment = position = 0
    for i in range(data.seq_len):
        if i and owner[i] != owner[i - 1] and data.attention == "document":
            segment, position = segment + 1, 0
        labelled = i + 1 < len(tokens)
        row["inputs"].append(tokens[i])
        row["labels"].append(tokens[i + 1] if labelled else 0)
        row["segments"].append(segment)
        row["positions"].append(position)
        row["loss_mask"].append(labelled and (data.loss == "all" or owner[i + 1] == owner[i]))
        position += 1
    return row


def assert_rows(arrays: Arrays, reader: FakeReader, windows: list[int], data: Data) -> None:
    for i, window in enumerate(windows):
        for name, expected in reference_row(reader, window, data).items():
            assert arrays[name][i].tolist() == expected, (name, window)


@pytest.mark.parametrize("data", VARIANTS, ids=lambda d: f"{d.windows}-{d.attention}-{d.loss}")
def test_every_window_is_what_a_scan_gives(data: Data) -> None:
    for reader in STORE.fakes.values():
        windows = list(range(windows_in(reader.tokens, S, data.windows)))
        arrays = assemble(reader, np.array(windows), data)
        assert_rows(arrays, reader, windows, data)
        assert {name: (x.dtype, x.shape) for name, x in arrays.items()} == {
            name: (np.dtype(bool if name == "loss_mask" else np.int32), (len(windows), S)) for name in arrays
        }


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=10).filter(lambda n: sum(n) > S),
    data=st.sampled_from(VARIANTS),
)
def test_any_documents(lengths: list[int], data: Data) -> None:
    reader = FakeReader("x", lengths)
    windows = list(range(windows_in(reader.tokens, S, data.windows)))[::-1]
    assert_rows(assemble(reader, np.array(windows), data), reader, windows, data)


def test_a_step_holds_the_rows_of_the_order() -> None:
    stream, table = stream_of_run(DATA, 3, STORE)
    seen = 0
    for step in range(1, table.steps + 1):
        batch = host_batch(STORE, stream, table, DATA, step)
        rows = stream.rows(np.arange(seen, seen + batch.sequences))
        assert (batch.step, batch.cursor, batch.stage) == (step, seen, 0 if step <= 7 else 1)
        assert batch.sequences == len(batch.arrays["inputs"]) == (8 if step <= 7 else 16)
        for i, (k, window) in enumerate(zip(rows.source.tolist(), rows.window.tolist(), strict=True)):
            reader = STORE.fakes[stream.sources[k].name]
            part = {name: x[i : i + 1] for name, x in batch.arrays.items()}
            assert_rows(part, reader, [window], DATA)
        seen += batch.sequences
    assert seen == table.positions


def joined(parts: list[HostBatch]) -> Arrays:
    return {name: np.concatenate([p.arrays[name] for p in parts]) for name in parts[0].arrays}


@pytest.mark.parametrize("data", [DATA, replace(DATA, windows="disjoint")], ids=["shared", "disjoint"])
@pytest.mark.parametrize("hosts", [1, 2, 8])
def test_hosts_read_parts_of_one_batch_and_digests_add_up(hosts: int, data: Data) -> None:
    stream, table = stream_of_run(data, 3, STORE)
    for step in (1, 4, 8, 10):
        whole = host_batch(STORE, stream, table, data, step)
        parts = [
            host_batch(STORE, stream, table, data, step, lambda n, h=h: slice(n * h // hosts, n * (h + 1) // hosts))  # type: ignore[misc]
            for h in range(hosts)
        ]
        together = joined(parts)
        assert all(np.array_equal(together[name], x) for name, x in whole.arrays.items())
        assert add_lanes(*(p.lanes for p in parts)) == whole.lanes
        assert [p.rows.start for p in parts] == [whole.sequences * h // hosts for h in range(hosts)]


def test_digest_is_that_of_the_tokens_and_flags_read_one_by_one() -> None:
    stream, table = stream_of_run(DATA, 3, STORE)
    batch = host_batch(STORE, stream, table, DATA, 2)
    rows = stream.rows(range(8, 16))
    tokens = np.stack(
        [
            STORE.sources[stream.sources[k].name].read(*span(w, S, "shared"))
            for k, w in zip(rows.source.tolist(), rows.window.tolist(), strict=True)
        ]
    )
    assert batch.lanes == batch_digest(tokens, flags(batch.arrays), 0)


def test_digest_notices_what_devices_would_consume_differently() -> None:
    stream, table = stream_of_run(DATA, 3, STORE)
    lanes = {
        (data.attention, data.loss): host_batch(STORE, stream, table, data, 1).lanes
        for data in VARIANTS
        if data.windows == "shared"
    }
    assert len(set(lanes.values())) == 4
    assert host_batch(STORE, *stream_of_run(DATA, 4, STORE), DATA, 1).lanes not in lanes.values()


def test_mutation_boundary_one_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = batch_module._opens
    monkeypatch.setattr(batch_module, "_opens", lambda ends, start, width: honest(ends + 1, start, width))
    with pytest.raises(AssertionError):
        test_every_window_is_what_a_scan_gives(DATA)


def test_mutation_rows_in_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest that did not count rows from the start of the global batch would add up to something else."""
    monkeypatch.setattr(batch_module, "batch_digest", lambda tokens, flags, first_row: batch_digest(tokens, flags, 0))
    with pytest.raises(AssertionError):
        test_hosts_read_parts_of_one_batch_and_digests_add_up(2, DATA)


class TornReader(FakeReader):
    """A source whose last tokens are not there."""

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:  # type: ignore[override]
        if int(np.max(starts)) + length > 100:
            raise ValueError("cannot read 16 bytes")
        return super().gather(starts, length)


def test_unreadable_source_is_named() -> None:
    store = FakeStore([TornReader("a", [400]), STORE.fakes["b"]])
    stream, table = stream_of_run(DATA, 3, store)
    with pytest.raises(DataError, match=r"step 1, source 'a' cannot be read within tokens .* --verify.*16 bytes"):
        host_batch(store, stream, table, DATA, 1)


def test_short_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FakeReader("a", [400])
    monkeypatch.setattr(reader, "gather", lambda starts, length: np.zeros((len(starts), length - 1), np.uint16))
    with pytest.raises(DataError, match="shorter than its manifest says"):
        assemble(reader, np.array([0, 1]), DATA)


def test_another_store_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(DataError, match="the store has manifest 000000000000, but the run was started on ffffffffffff"):
        stream_of_run(replace(DATA, manifest="f" * 64), 3, STORE)
