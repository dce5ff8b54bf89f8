"""Seconds on one CPU core: what the tests train, and what an experiment with jaxllm itself starts from.

Two stages with different mixtures and batch sizes over the Python texts; small enough that an epoch of the smaller
source passes within it.

    jaxllm train configs/debug.py
"""

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage
from jaxllm.models.config import Attention, Model, NormalInit, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, Logging


def debug() -> RunConfig:
    return RunConfig(
        name="debug",
        seed=7,
        model=Model(
            vocab_size=2048,
            width=32,
            layers=2,
            attention=Attention(heads=4, kv_heads=2, head_width=8),
            ffn=SwiGlu(width=80),
            init=NormalInit(residual="depth_scaled"),
        ),
        data=Data(
            store=python_stdlib(),
            seq_len=64,
            block=32,
            stages=(
                Stage(
                    name="first",
                    steps=24,
                    batch_size=8,
                    mixture=(Share(source="prose", weight=0.7), Share(source="code", weight=0.3)),
                ),
                Stage(
                    name="second",
                    steps=16,
                    batch_size=16,
                    mixture=(Share(source="prose", weight=0.25), Share(source="code", weight=0.75)),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=1e-2, end=1e-3, warmup_steps=4, total_steps=40)),
        checkpoints=Checkpoints(every_steps=8, keep_latest=3),
        evaluation=Evaluation(every_steps=20, windows=16, batch_size=16),
        logging=Logging(every_steps=5, norms_every_steps=10),
    )
