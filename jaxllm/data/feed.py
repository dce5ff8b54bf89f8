"""Batches, prefetched by Grain and laid out on devices. The only file of `data` that knows jax and grain.

One item of the Grain dataset is one step's batch (Grain's cost is per item, and so it is paid once a step), computed
from the step number alone. The iterator's whole state is therefore the number of steps it has given.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax

from jaxllm.core.errors import CheckpointError, RunError
from jaxllm.data.batch import HostBatch, Weigh, all_rows, host_batch
from jaxllm.data.config import Data
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.stream import Stream

MAX_THREADS = 4  # readers of one process; a batch is one vectorised read, so more only take memory


class BatchSource:
    """A Grain random-access source: item i is the batch of step i + 1.

    rows: global batch size -> the rows that this process feeds. counted: those of them whose share of the batch's
    digest is its to give; all unless another process feeds the same. weigh: faults that are injected.
    """

    def __init__(
        self,
        store: Store,
        stream: Stream,
        table: StepTable,
        data: Data,
        rows: Callable[[int], slice] = all_rows,
        counted: Callable[[int], Sequence[slice]] | None = None,
        weigh: Weigh | None = None,
    ) -> None:
        self.store, self.stream, self.table, self.data = store, stream, table, data
        self.rows, self.counted, self.weigh = rows, counted, weigh

    def __len__(self) -> int:
        return self.table.steps

    def __getitem__(self, index: int) -> HostBatch:
        step = int(index) + 1
        return host_batch(self.store, self.stream, self.table, self.data, step, self.rows, self.counted, self.weigh)


class Feed:
    """Iterates over batches from the one after `finished` steps on, reading up to `prefetch` of them ahead.

    What is read ahead never changes what is given; prefetch=0 reads in the calling thread. An error of a reader is
    raised where its batch was due, and again by every later `next`, for the iterator behind it would skip that batch.
    """

    def __init__(self, source: BatchSource, finished: int = 0, prefetch: int = 2) -> None:
        if not 0 <= finished <= len(source):
            raise RunError(f"the feed starts after 0 to {len(source)} finished steps, not {finished}")
        self._source = source
        self._error: Exception | None = None
        options = grain.ReadOptions(num_threads=min(prefetch, MAX_THREADS), prefetch_buffer_size=prefetch)
        self._iterator: Any = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        self._iterator.set_state({"next_index": finished})

    @classmethod
    def restore(cls, source: BatchSource, state: Mapping[str, Any], *, cursor: int, prefetch: int = 2) -> "Feed":
        """A feed that goes on from a saved `state`. CheckpointError unless it agrees with the saved cursor."""
        finished = state.get("next_index")
        if set(state) != {"next_index"} or type(finished) is not int or not 0 <= finished <= len(source):
            raise CheckpointError(
                f"feed state {dict(state)} is not {{'next_index': 0..{len(source)}}}; use the checkpoint before it"
            )
        expected = source.table.consumed(finished)
        if cursor != expected:
            raise CheckpointError(
                f"the feed stood after {finished} steps, that is at position {expected}, but the checkpoint's cursor "
                f"is {cursor}; use the checkpoint before it"
            )
        return cls(source, finished, prefetch)

    @property
    def finished(self) -> int:
        """Steps given so far, those before the start included."""
        return int(self._iterator.get_state()["next_index"])

    @property
    def cursor(self) -> int:
        """The stream position of the next batch."""
        return self._source.table.consumed(self.finished)

    def state(self) -> dict[str, int]:
        """JSON-safe, and the same on every process and for every number of them."""
        return {"next_index": self.finished}

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> HostBatch:
        if self._error is not None:
            raise self._error
        due = self.finished + 1
        try:
            batch: HostBatch = next(self._iterator)
        except StopIteration:
            raise
        except Exception as err:
            self._error = err
            self.close()
            raise
        if batch.step != due:
            raise AssertionError(f"grain gave step {batch.step} where {due} was due")
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator.close()


def to_devices(batch: HostBatch, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """Global arrays [batch.sequences, S] from the rows that each process has read."""
    return {
        name: jax.make_array_from_process_local_data(sharding, local, (batch.sequences, *local.shape[1:]))
        for name, local in batch.arrays.items()
    }
