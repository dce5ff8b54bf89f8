"""K2-65B (Diamond), LLM360's 65B: 1.4 trillion tokens, then 69 billion more with a longer context.

Reproduces https://huggingface.co/LLM360/K2; stage 1 from LLM360's k2-train (scripts/pretrain_65b.sh, Megatron's
defaults where it sets nothing) and the table of https://huggingface.co/datasets/LLM360/K2Datasets. No script of stage 2
was published: see `stage2`.

Cost: 1,415,312,179,200 and 69,437,030,400 tokens, 5.7e23 and 3.2e22 FLOPs (`jaxllm show`); 480 A100 (a third party's
account of https://arxiv.org/abs/2501.07124), tensor 8 x pipeline 4 x data 15. (The dataset card counts 1.3 trillion
tokens of stage 1, the steps of the script 1.4153.) Expect: 360 checkpoints of 941 steps, and two spikes of the loss,
after checkpoint 160 and at 186, which they rewound and, it seems, went round by moving those chunks to the end.

The store stores/k2 holds one source for each row of the dataset's table, under the names of the mixture below: K2's
LLaMA tokenizer with 32,032 ids, '</s>' closing every document, no BOS. Windows are 2,048 tokens with 2,047 labels. The
shares decide how often a source is repeated; the published order of the chunks is not this order.

    jaxllm train configs/k2_65b.py:stage1 io.root=/mnt/runs data.store.path=/data/stores/k2
    jaxllm train configs/k2_65b.py:stage2 io.root=/mnt/runs data.store.path=/data/stores/k2
    jaxllm train configs/k2_65b.py:small
    jaxllm train configs/k2_65b.py:small_stage2
"""

from dataclasses import replace

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Attention, Model, NormalInit, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.parallel.config import AllToAll, Compute, Mesh, Ring
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, FromRun, Logging, Precision

CHUNKS, STEPS_PER_CHUNK = 360, 941
STEPS = CHUNKS * STEPS_PER_CHUNK
CHUNKS_2, STEPS_PER_CHUNK_2 = 20, 831


def stage1() -> RunConfig:
    return RunConfig(
        name="k2-65b-stage1",
        seed=22_238,  # of the published script, which is the one used after checkpoint 160
        model=Model(
            vocab_size=32_032,
            width=8192,
            layers=80,
            attention=Attention(heads=64, kv_heads=64, head_width=128),
            ffn=SwiGlu(width=22_016),
            init=NormalInit(std=0.02, residual="depth_scaled"),
        ),
        data=Data(
            store=StoreAt(path="stores/k2"),
            seq_len=2048,
            windows="disjoint",
            attention="window",  # Megatron's default; unverified
            stages=(
                Stage(
                    name="stage1",
                    steps=STEPS,
                    batch_size=2040,
                    mixture=(  # billions of tokens, repetitions included
                        Share(source="dm-math", weight=13.0),
                        Share(source="pubmed-abstracts", weight=14.3),
                        Share(source="uspto", weight=14.3),
                        Share(source="pubmed-central", weight=26.0),
                        Share(source="redpajama.arxiv", weight=27.3),
                        Share(source="starcoder.spm", weight=33.8),
                        Share(source="starcoder.fim", weight=33.8),
                        # The card counts books and Stack Exchange once, the published mixing script three times.
                        Share(source="redpajama.stackexchange", weight=61.1),
                        Share(source="starcoder", weight=66.3),
                        Share(source="pile-of-law", weight=76.7),
                        Share(source="redpajama.book", weight=80.6),
                        Share(source="s2orc", weight=107.9),
                        Share(source="redpajama.wikipedia", weight=132.6),
                        Share(source="refinedweb", weight=612.3),
                    ),
                ),
            ),
        ),
        # Decay as Megatron applies it: neither norms nor biases.
        optimizer=AdamW(schedule=warmup_cosine(peak=1.5e-4, end=1.5e-5, warmup_steps=2000, total_steps=STEPS)),
        precision=Precision(compute="bfloat16"),
        # Ours: sharded data parallel in place of their four pipeline stages, and sequences in four parts, so that 120
        # of the 2,040 at a time divide over a pod of 256 chips (8 groups) as over their 480 devices (15).
        mesh=Mesh(dp=1, fsdp=-1, cp=4, tp=8),
        compute=Compute(remat="full", micro_batch=120, context_parallel=AllToAll()),
        checkpoints=Checkpoints(every_steps=STEPS_PER_CHUNK, keep_every=STEPS_PER_CHUNK),
        evaluation=Evaluation(every_steps=STEPS_PER_CHUNK, batch_size=120),
    )


def stage2() -> RunConfig:
    """UNVERIFIED but for the 69.4 billion tokens, the 20 checkpoints and the shares of the sources named.

    Published nowhere that could be read: learning rate, batch, context, rope base, optimizer state. Chosen here: a
    context of 8192 at the tokens per step of stage 1, its last learning rate decayed to a tenth, theta unchanged, fresh
    moments.
    """
    first = stage1()
    return replace(
        first,
        name="k2-65b-stage2",
        start=FromRun(folder=first.name, step=STEPS, optimizer="fresh"),
        data=replace(
            first.data,
            seq_len=8192,
            stages=(
                Stage(
                    name="stage2",
                    steps=CHUNKS_2 * STEPS_PER_CHUNK_2,  # 69.44 billion tokens
                    batch_size=510,
                    mixture=(  # billions of tokens; the rows of the card that could be read, 65.3 of 69.4
                        Share(source="open-web-math", weight=14.6),
                        Share(source="starcoder.python", weight=20.5),
                        Share(source="algebraic-stack", weight=10.9),
                        Share(source="books", weight=5.8),
                        Share(source="simple-wiki", weight=4.3),
                        Share(source="redpajama.arxiv", weight=2.0),
                        Share(source="redpajama.book", weight=2.0),
                        Share(source="pile-of-law", weight=2.0),
                        Share(source="pes2o", weight=1.2),
                        Share(source="s2orc", weight=2.0),
                    ),
                ),
            ),
        ),
        optimizer=replace(
            first.optimizer,
            schedule=warmup_cosine(peak=1.5e-5, end=1.5e-6, warmup_steps=100, total_steps=CHUNKS_2 * STEPS_PER_CHUNK_2),
        ),
        # On 480 devices, 15 groups take two sequences of 30 each.
        compute=Compute(remat="full", micro_batch=30, context_parallel=Ring()),
        checkpoints=Checkpoints(every_steps=STEPS_PER_CHUNK_2, keep_every=STEPS_PER_CHUNK_2),
        evaluation=Evaluation(every_steps=STEPS_PER_CHUNK_2, batch_size=30),
    )


def small() -> RunConfig:
    """Stage 1's parts in 1.3M parameters: minutes on a laptop."""
    return RunConfig(
        name="k2-small",
        seed=22_238,
        model=Model(
            vocab_size=2048,
            width=128,
            layers=4,
            attention=Attention(heads=4, kv_heads=4, head_width=32),
            ffn=SwiGlu(width=344),
            init=NormalInit(std=0.02, residual="depth_scaled"),
        ),
        data=Data(
            store=python_stdlib(),
            seq_len=128,
            windows="disjoint",
            attention="window",
            stages=(
                Stage(
                    name="stage1",
                    steps=300,
                    batch_size=8,
                    mixture=(Share(source="prose", weight=0.7), Share(source="code", weight=0.3)),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=3e-3, end=3e-4, warmup_steps=20, total_steps=300)),
        checkpoints=Checkpoints(every_steps=100, keep_latest=2),
        evaluation=Evaluation(every_steps=150, windows=64),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )


def small_stage2() -> RunConfig:
    """What stage2 does to stage1, done to `small`: four times the context, the same tokens per step."""
    first = small()
    return replace(
        first,
        name="k2-small-stage2",
        start=FromRun(folder=first.name, step=300, optimizer="fresh"),
        data=replace(
            first.data,
            seq_len=512,
            stages=(
                Stage(
                    name="stage2",
                    steps=60,
                    batch_size=2,
                    mixture=(Share(source="prose", weight=0.3), Share(source="code", weight=0.7)),
                ),
            ),
        ),
        optimizer=replace(first.optimizer, schedule=warmup_cosine(peak=3e-4, end=3e-5, warmup_steps=5, total_steps=60)),
        checkpoints=Checkpoints(every_steps=30, keep_latest=2),
        evaluation=Evaluation(every_steps=30, windows=64),
    )
