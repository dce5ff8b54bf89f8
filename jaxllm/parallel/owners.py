"""Who counts which rows of a batch, where several processes hold the same ones."""

from typing import Any

import jax
import numpy as np

from jaxllm.parallel.shard import batch_sharding


def owned_rows(mesh: jax.sharding.Mesh, rows: int) -> list[slice]:
    """The rows of a global batch of `rows` sequences that this process counts: of those it holds, the ones that no
    process before it holds. Over all processes they are every row, once."""
    first = np.full(rows, jax.process_count(), np.int64)
    device: Any
    for device, index in batch_sharding(mesh).devices_indices_map((rows,)).items():
        first[index[0]] = np.minimum(first[index[0]], device.process_index)
    mine = np.concatenate([[False], first == jax.process_index(), [False]])
    edges = np.flatnonzero(mine[1:] != mine[:-1]).tolist()
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
