"""Held-out loss per source: token-weighted, in nats per token and bits per UTF-8 byte.

Runs over the first windows of each held-out source, in order. It draws no randomness and moves no cursor.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxllm.data.batch import assemble
from jaxllm.data.config import Data
from jaxllm.data.store import SourceReader, Store
from jaxllm.data.windows import windows_in
from jaxllm.ledger.scores import Score
from jaxllm.models.context import Context
from jaxllm.models.declare import Params
from jaxllm.models.decoder import Decoder
from jaxllm.ops.cross_entropy import cross_entropy

Tree = Any
Arrays = dict[str, np.ndarray]


class HeldOut:
    """Scores parameters on the held-out documents of a store.

    place: puts the process-local rows of a batch on the devices. rows: (first, last + 1) row of this process.
    """

    def __init__(
        self,
        declared: Params[Decoder],
        context: Context,
        store: Store,
        data: Data,
        *,
        windows: int | None,
        batch_size: int,
        loss_chunks: int,
        rows: slice,
        place: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]],
        replicated: jax.sharding.Sharding,
    ) -> None:
        # Windows are cut as the 'shared' kind whatever the run trains on: every held-out token is then a label once.
        self._data = replace(data, windows="shared")
        self._store, self._limit, self._batch_size = store, windows, batch_size
        self._token_bytes = store.token_bytes.astype(np.int64)
        self._rows, self._place = rows, place

        def score(params: Tree, batch: Mapping[str, jax.Array]) -> jax.Array:
            model, batch = declared.bind(params), context.arrange(batch)
            x_BSD, _ = model.hidden(batch["inputs"], batch["segments"], batch["positions"], context)
            _, loss_B = cross_entropy(
                x_BSD,
                model.head_VD(),
                batch["labels"],
                batch["loss_mask"],
                denominator=1.0,
                softcap=model.model.logit_softcap,
                chunks=loss_chunks,
                shard=context.shard,
            )
            return loss_B

        self._score = jax.jit(score, out_shardings=replicated)

    def __call__(self, params: Tree) -> list[Score]:
        """One score per source that holds documents out, in the store's order."""
        return [s for name, reader in self._store.heldout.items() if (s := self._source(name, reader, params))]

    def _source(self, name: str, reader: SourceReader, params: Tree) -> Score | None:
        nats, tokens, text_bytes = 0.0, 0, 0
        for batch in self._batches(reader):
            mine = {k: v[self._rows] for k, v in batch.items()}
            nats += float(np.asarray(self._score(params, self._place(mine)), np.float64).sum())
            labels = batch["labels"][batch["loss_mask"]]
            tokens += labels.size
            text_bytes += int(self._token_bytes[labels].sum())
        if not text_bytes:
            return None
        return Score(
            source=name,
            nats_per_token=nats / tokens,
            bits_per_byte=nats / math.log(2) / text_bytes,
            tokens=tokens,
        )

    def _batches(self, reader: SourceReader) -> Iterator[Arrays]:
        """Global batches of equal shape; rows past the last window carry no label."""
        count = windows_in(reader.tokens, self._data.seq_len, self._data.windows)
        count = count if self._limit is None else min(count, self._limit)
        for first in range(0, count, self._batch_size):
            windows = np.arange(first, first + self._batch_size)
            arrays = assemble(reader, np.minimum(windows, count - 1), self._data)
            arrays["loss_mask"] &= (windows < count)[:, None]
            yield arrays
