"""A first trained model in minutes, offline, on two CPU cores.

A 2M-parameter LLaMA-style decoder on text from the user's own Python installation: language first, then language and
code, in the manner of Crystal.

    bash launch/local.sh
    jaxllm train configs/quickstart.py
"""

from dataclasses import replace

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage
from jaxllm.models.config import Attention, Model, Moe, NormalInit, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, Logging

LANGUAGE, CODE = 300, 300


def quickstart() -> RunConfig:
    return RunConfig(
        name="quickstart",
        seed=1,
        model=Model(
            vocab_size=2048,
            width=192,
            layers=4,
            attention=Attention(heads=6, kv_heads=2, head_width=32),
            ffn=SwiGlu(width=512),
            tied_embeddings=True,
            init=NormalInit(residual="depth_scaled"),
        ),
        data=Data(
            store=python_stdlib(),
            seq_len=256,
            stages=(
                Stage(
                    name="language",
                    steps=LANGUAGE,
                    batch_size=4,
                    mixture=(Share(source="prose", weight=0.9), Share(source="code", weight=0.1)),
                ),
                Stage(
                    name="language_code",
                    steps=CODE,
                    batch_size=4,
                    mixture=(Share(source="prose", weight=0.4), Share(source="code", weight=0.6)),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=3e-3, end=3e-4, warmup_steps=30, total_steps=LANGUAGE + CODE)),
        checkpoints=Checkpoints(every_steps=100, keep_latest=2, keep_every=300),
        evaluation=Evaluation(
            every_steps=150,
            windows=64,
            prompts=("Return the number of", "def __init__(self,"),
        ),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )


def moe() -> RunConfig:
    """quickstart() with eight experts of a quarter of its width, two of which serve a token. Biases keep them all busy,
    and a small loss within each sequence.

        jaxllm train configs/quickstart.py:moe
    """
    run = quickstart()
    experts = Moe(experts=8, top_k=2, expert=SwiGlu(width=128), balance=0.01, z_loss=1e-3, bias_rate=0.01)
    return replace(run, name="quickstart-moe", model=replace(run.model, ffn=experts))
