"""The Grain feed: state, restore, prefetch, errors, and rows on devices."""

import json
import pickle

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllm.core.errors import CheckpointError, DataError, RunError
from jaxllm.data.batch import HostBatch
from jaxllm.data.feed import BatchSource, Feed, to_devices
from jaxllm.data.stream import stream_of_run
from tests.data.fake_store import FakeReader, FakeStore
from tests.data.test_batch import DATA, STORE, TornReader, joined

STEPS = 10


def source(store: FakeStore = STORE, rows: slice | None = None) -> BatchSource:
    stream, table = stream_of_run(DATA, 3, store)
    if rows is None:
        return BatchSource(store, stream, table, DATA)
    return BatchSource(store, stream, table, DATA, lambda n: rows)


def assert_same(a: HostBatch, b: HostBatch) -> None:
    assert (a.step, a.cursor, a.lanes) == (b.step, b.cursor, b.lanes)
    assert all(np.array_equal(x, b.arrays[name]) for name, x in a.arrays.items())


@pytest.fixture(scope="module")
def batches() -> list[HostBatch]:
    made = source()
    return [made[i] for i in range(STEPS)]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 7, 100])
def test_prefetch_changes_nothing(prefetch: int, batches: list[HostBatch]) -> None:
    feed = Feed(source(), prefetch=prefetch)
    for expected in batches:
        assert_same(next(feed), expected)
    with pytest.raises(StopIteration):
        next(feed)
    feed.close()


@pytest.mark.parametrize("given", range(STEPS + 1))
def test_restored_feed_goes_on_where_it_stood(given: int, batches: list[HostBatch]) -> None:
    feed = Feed(source(), prefetch=3)
    for _ in range(given):
        next(feed)
    state, cursor = json.loads(json.dumps(feed.state())), feed.cursor
    assert state == {"next_index": given}
    assert cursor == sum(b.sequences for b in batches[:given])
    feed.close()
    again = Feed.restore(source(), state, cursor=cursor, prefetch=1)
    rest = list(again)
    assert len(rest) == STEPS - given
    for got, expected in zip(rest, batches[given:], strict=True):
        assert_same(got, expected)


def test_state_is_the_same_on_every_process() -> None:
    states = []
    for rows in (slice(0, 2), slice(2, 8), None):
        feed = Feed(source(rows=rows))
        next(feed), next(feed)
        states.append(feed.state())
        feed.close()
    assert states == [{"next_index": 2}] * 3


def test_restore_refuses_a_cursor_that_disagrees() -> None:
    assert Feed.restore(source(), {"next_index": 3}, cursor=24).finished == 3
    for cursor in (23, 25, 16, 0):
        with pytest.raises(CheckpointError, match=f"after 3 steps, that is at position 24.*cursor is {cursor}"):
            Feed.restore(source(), {"next_index": 3}, cursor=cursor)


@pytest.mark.parametrize(
    "state", [{}, {"next": 3}, {"next_index": 3, "hosts": 2}, *({"next_index": n} for n in (-1, 11, 1.0, True, None))]
)
def test_restore_refuses_a_state_that_is_none(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="feed state"):
        Feed.restore(source(), state, cursor=24)


def test_feed_cannot_start_behind_the_end() -> None:
    assert list(Feed(source(), STEPS)) == []
    for finished in (-1, STEPS + 1):
        with pytest.raises(RunError, match="0 to 10"):
            Feed(source(), finished)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.timeout(60)
def test_unreadable_store_is_an_error_where_its_batch_was_due_and_stays_one(prefetch: int) -> None:
    """Grain by itself would go on with the batch after the one that failed."""
    torn = FakeStore([FakeReader("a", [400]), TornReader("b", [400])])
    stream, table = stream_of_run(DATA, 3, torn)
    rows = stream.rows(range(table.span(1).size))
    assert rows.window[rows.source == 1].max() > 12  # so the first batch fails already
    feed = Feed(BatchSource(torn, stream, table, DATA), prefetch=prefetch)
    for _ in range(3):
        with pytest.raises(DataError, match="step 1, source 'b' cannot be read"):
            next(feed)


@pytest.mark.timeout(60)
def test_error_in_a_later_batch_comes_after_the_good_ones(
    monkeypatch: pytest.MonkeyPatch, batches: list[HostBatch]
) -> None:
    broken = source()
    honest = broken.__getitem__

    def item(self: BatchSource, index: int) -> HostBatch:
        if index == 2:
            raise DataError("step 3 is gone")
        return honest(index)

    monkeypatch.setattr(BatchSource, "__getitem__", item)
    feed = Feed(broken, prefetch=4)
    assert_same(next(feed), batches[0])
    assert_same(next(feed), batches[1])
    for _ in range(2):
        with pytest.raises(DataError, match="step 3 is gone"):
            next(feed)
    assert feed.state() == {"next_index": 2}


# ---- on devices ------------------------------------------------------------------------------------------------------


def sharding() -> NamedSharding:
    devices = np.array(jax.devices())
    size = len(devices) if len(devices) in (1, 2, 4, 8) else 1
    mesh = Mesh(devices[:size], ("dp",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("dp", None))


def test_rows_become_global_arrays(batches: list[HostBatch]) -> None:
    for batch in (batches[0], batches[-1]):
        arrays = to_devices(batch, sharding())
        assert set(arrays) == {"inputs", "labels", "segments", "positions", "loss_mask"}
        for name, x in arrays.items():
            assert x.shape == (batch.sequences, DATA.seq_len)
            assert x.sharding == sharding()
            assert x.dtype == batch.arrays[name].dtype
            assert np.array_equal(np.asarray(x), batch.arrays[name])


def test_only_its_rows_are_read(monkeypatch: pytest.MonkeyPatch, batches: list[HostBatch]) -> None:
    asked: list[int] = []

    class Counting(FakeReader):
        def gather(self, starts: np.ndarray, length: int) -> np.ndarray:  # type: ignore[override]
            asked.append(len(starts))
            return super().gather(starts, length)

    store = FakeStore(
        [Counting(r.name, np.diff(r.ends, prepend=0).tolist(), int(r.read(0, 1)[0])) for r in STORE.fakes.values()]
    )
    parts = [source(store, slice(0, 2))[0], source(store, slice(2, 8))[0]]
    assert sum(asked) == 8
    whole = joined(parts)
    assert all(np.array_equal(whole[name], x) for name, x in batches[0].arrays.items())


def test_mutation_feed_one_step_ahead(batches: list[HostBatch]) -> None:
    feed = Feed(source())
    feed._iterator.set_state({"next_index": 1})
    with pytest.raises(AssertionError):
        assert_same(next(feed), batches[0])


def test_pickled_source_gives_the_same(batches: list[HostBatch]) -> None:
    again = pickle.loads(pickle.dumps(source()))
    assert_same(again[4], batches[4])
