"""The fixed run of the tests: small enough for seconds, with everything in it that can go wrong.

Two sources from a text of our own (tools/make_golden_text.py), both of which pass through several epochs, two stages
with different mixtures and batch sizes, held-out documents, documents that span windows. Its losses are golden values:
a change of any number here moves them.
"""

from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, DataRecipe, Share, SourceRecipe, Stage, TextFiles, TrainBpe
from jaxllm.models.config import Attention, Model, NormalInit, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, Logging, Loss


def golden() -> RunConfig:
    def source(name: str) -> SourceRecipe:
        documents = TextFiles(paths=(f"tests/golden/{name}.jsonl",), id_field="id")
        return SourceRecipe(name=name, documents=documents, heldout_per_mille=100)

    return RunConfig(
        name="golden",
        seed=11,
        model=Model(
            vocab_size=512,
            width=32,
            layers=2,
            attention=Attention(heads=4, kv_heads=2, head_width=8),
            ffn=SwiGlu(width=80),
            init=NormalInit(residual="depth_scaled"),
        ),
        data=Data(
            store=DataRecipe(
                name="golden", sources=(source("prose"), source("code")), tokenizer=TrainBpe(vocab_size=512)
            ),
            seq_len=64,
            block=32,
            stages=(
                Stage(
                    name="language",
                    steps=24,
                    batch_size=16,
                    mixture=(Share(source="prose", weight=0.8), Share(source="code", weight=0.2)),
                ),
                Stage(
                    name="language_code",
                    steps=16,
                    batch_size=32,
                    mixture=(Share(source="prose", weight=0.3), Share(source="code", weight=0.7)),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=1e-2, end=1e-3, warmup_steps=4, total_steps=40)),
        loss=Loss(z_loss=1e-4),
        checkpoints=Checkpoints(every_steps=8, keep_latest=3),
        evaluation=Evaluation(every_steps=20, windows=16, batch_size=8),
        logging=Logging(every_steps=5, norms_every_steps=10),
    )
