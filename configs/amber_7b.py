"""Amber, LLM360's 7B: 1.26 trillion tokens in 360 chunks, each with a checkpoint and its data.

Reproduces https://huggingface.co/LLM360/Amber; values from LLM360's amber-train (main.py, run.sh, README.md) and the
model's config.json. LLaMA-7B's shape; AdamW without parameter groups, so weight decay acts on norms too; attention runs
across documents.

Cost: 1,258,448,486,400 tokens, 5.4e22 FLOPs (`jaxllm show`); 56 nodes of 4 A100 80GB. (The published throughput could
not be read.) Expect: ARC-c 42.57, HellaSwag 73.91, MMLU 28.53, TruthfulQA 43.67, WinoGrande 64.35 (model card).

The store stores/amber holds one source for each subset of https://huggingface.co/datasets/LLM360/AmberDatasets, under
the names of the mixture below, tokenized with LLaMA's tokenizer (huggyllama/llama-7b, 32,000 ids), '</s>' closing every
document and no BOS. The published rows of 2,049 ids do not share their last token with the next row, ours do. Which
row Amber saw at which step was not published: within a chunk the order depended on when jobs were restarted.

AmberChat and AmberSafe, which were fine-tuned from its last checkpoint, are not here: their learning rates, batches and
epochs could not be read.

    jaxllm train configs/amber_7b.py:amber_7b io.root=/mnt/runs data.store.path=/data/stores/amber
    jaxllm train configs/amber_7b.py:small
"""

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.core.dims import TRAINED_ROLES
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Attention, Model, RmsNorm, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.parallel.config import Compute, Mesh
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, Logging, Precision

CHUNKS, STEPS_PER_CHUNK = 360, 762
STEPS = CHUNKS * STEPS_PER_CHUNK


def amber_7b() -> RunConfig:
    return RunConfig(
        name="amber-7b",
        seed=11_111,
        model=Model(
            vocab_size=32_000,
            width=4096,
            layers=32,
            attention=Attention(heads=32, kv_heads=32, head_width=128),
            ffn=SwiGlu(width=11_008),
            norm=RmsNorm(eps=1e-6),
        ),
        data=Data(
            store=StoreAt(path="stores/amber"),
            seq_len=2048,
            attention="window",
            stages=(
                Stage(
                    name="pretraining",
                    steps=STEPS,
                    batch_size=2240,  # 56 nodes x 4 devices x 10
                    mixture=(  # billions of tokens
                        Share(source="arxiv", weight=30.00),
                        Share(source="book", weight=28.86),
                        Share(source="c4", weight=197.67),
                        Share(source="refinedweb", weight=665.01),
                        Share(source="starcoder", weight=291.92),
                        Share(source="stackexchange", weight=21.75),
                        Share(source="wikipedia", weight=23.90),
                    ),
                ),
            ),
        ),
        optimizer=AdamW(
            schedule=warmup_cosine(peak=3e-4, end=3e-5, warmup_steps=2000, total_steps=STEPS),
            decay_roles=TRAINED_ROLES,
        ),
        precision=Precision(compute="bfloat16"),
        # Sharded data parallel with recomputation, as published; their offload of parameters to the host has no
        # counterpart here, and needs none. The batch divides over 64 devices and not over 128, so that a pod of 256
        # (TPU v5e 16x16) splits heads as well; 448 sequences at a time divide over its 64 and over the 56 of 224.
        mesh=Mesh(dp=1, fsdp=-1, tp=4, sequence_parallel=True),
        compute=Compute(remat="dots", micro_batch=448),
        checkpoints=Checkpoints(every_steps=STEPS_PER_CHUNK, keep_every=STEPS_PER_CHUNK),
        evaluation=Evaluation(every_steps=STEPS_PER_CHUNK, batch_size=448),
    )


def small() -> RunConfig:
    """The same parts in 1.3M parameters: minutes on a laptop."""
    return RunConfig(
        name="amber-small",
        seed=11_111,
        model=Model(
            vocab_size=2048,
            width=128,
            layers=4,
            attention=Attention(heads=4, kv_heads=4, head_width=32),
            ffn=SwiGlu(width=344),
            norm=RmsNorm(eps=1e-6),
        ),
        data=Data(
            store=python_stdlib(),
            seq_len=128,
            attention="window",
            stages=(
                Stage(
                    name="pretraining",
                    steps=300,
                    batch_size=8,
                    mixture=(Share(source="prose", weight=0.7), Share(source="code", weight=0.3)),
                ),
            ),
        ),
        optimizer=AdamW(
            schedule=warmup_cosine(peak=3e-3, end=3e-4, warmup_steps=20, total_steps=300), decay_roles=TRAINED_ROLES
        ),
        checkpoints=Checkpoints(every_steps=100, keep_latest=2),
        evaluation=Evaluation(every_steps=150, windows=64),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )
