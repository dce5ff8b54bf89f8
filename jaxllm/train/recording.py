"""What a step said of itself, as its record: the same for whoever executes it."""

from collections.abc import Sequence

import numpy as np

from jaxllm.core.mixing import Lanes, hex_lanes
from jaxllm.data.batch import HostBatch
from jaxllm.ledger.recorder import losses_digest
from jaxllm.ledger.records import StepRecord
from jaxllm.train.state import Metrics


def step_record(
    metrics: Metrics, batch: HostBatch, lanes: Lanes, lr: np.float32, *, lineage: int, stages: Sequence[str]
) -> tuple[StepRecord, np.ndarray, np.ndarray]:
    """(record, float32 loss sums, int32 token counts) of a step, from its metrics as they lie on the host.

    lanes: the digest of the whole batch, of all processes together. stages: names, in the order of the run.
    """
    loss_B, tokens_B = np.asarray(metrics.loss_B), np.asarray(metrics.tokens_B)
    record = StepRecord.of_values(
        lineage=lineage,
        step=batch.step,
        cursor=batch.cursor,
        stage=stages[batch.stage],
        sequences=batch.sequences,
        tokens=int(tokens_B.sum()),
        loss=np.float32(metrics.loss),
        grad_norm=np.float32(metrics.grad_norm),
        lr=lr,
        batch=hex_lanes(lanes),
        losses=losses_digest(loss_B, tokens_B),
        refused=bool(metrics.refused),
    )
    return record, loss_B, tokens_B
