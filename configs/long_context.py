"""An 8B continued at a context of 131,072: no published run, but the shape of one, to begin a long-context run from.

The shape is Llama 3.1's (https://arxiv.org/abs/2407.21783, table 3, and the model's config.json: 8,030,261,248
parameters, theta 500,000, frequencies stretched 8 times from 8,192); so are its weights, once imported. The paper
lengthens the context over about 800 billion tokens in six stages and attends within documents; the recipe here is ours
and untested: one stage of 9,999,220,736 tokens, 4.2 million a step, a learning rate of 1e-5 to 1e-6.

Cost: 9,999,220,736 tokens, 2.5e21 FLOPs (`jaxllm show`), most of them in attention. Eight devices hold a sequence,
16,384 positions each; for attention each takes all positions of four heads and their one key-value head (cp, AllToAll).
Up to eight such groups divide the micro-batch, 64 devices. (`jaxllm plan` on v5p 4x4x4: 35 s a step at best, bound by
compute. A ring would keep its logits in memory instead of in a kernel, and take 522 s.)

The store stores/long holds two sources in Llama 3's tokenizer (128,256 ids), '<|end_of_text|>' closing every document:
`long`, documents of 16,384 tokens and more, and `short`, the rest of the original mixture, without which short contexts
suffer (https://arxiv.org/abs/2402.10171). base/ is the run folder that `jaxllm import-hf` makes of the weights.

    jaxllm train configs/long_context.py:llama_8b_128k start.folder=base data.store.path=/data/stores/long
    jaxllm train configs/long_context.py:small_base
    jaxllm train configs/long_context.py:small

The small one on eight simulated devices, around which its 2,048 positions lie:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=32 jaxllm train configs/long_context.py:small mesh.cp=8
"""

from dataclasses import replace

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Attention, Llama3Scaling, Model, Rope, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.parallel.config import AllToAll, Compute, Mesh
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, FromRun, Logging, Precision

STEPS = 2384
ROPE = Rope(
    theta=500_000.0,
    scaling=Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192),
)


def llama_8b_128k() -> RunConfig:
    """UNVERIFIED: shape and weights are published, the recipe is not theirs."""
    return RunConfig(
        name="llama-8b-128k",
        seed=131_072,
        start=FromRun(folder="base", step=0, optimizer="fresh"),
        model=Model(
            vocab_size=128_256,
            width=4096,
            layers=32,
            attention=Attention(heads=32, kv_heads=8, head_width=128),
            ffn=SwiGlu(width=14_336),
            position=ROPE,
        ),
        data=Data(
            store=StoreAt(path="stores/long"),
            seq_len=131_072,
            stages=(
                Stage(
                    name="long",
                    steps=STEPS,
                    batch_size=32,
                    mixture=(Share(source="long", weight=0.6), Share(source="short", weight=0.4)),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=1e-5, end=1e-6, warmup_steps=100, total_steps=STEPS)),
        precision=Precision(compute="bfloat16"),
        mesh=Mesh(dp=1, fsdp=-1, cp=8),
        compute=Compute(remat="full", micro_batch=8, loss_chunks=16, context_parallel=AllToAll()),
        checkpoints=Checkpoints(every_steps=298, keep_latest=3),
        evaluation=Evaluation(every_steps=298, windows=32),
    )


def small_base() -> RunConfig:
    """Something to continue, in 1.4M parameters: 300 steps at a context of 128."""
    return RunConfig(
        name="long-small-base",
        seed=131_072,
        model=Model(
            vocab_size=2048,
            width=128,
            layers=4,
            attention=Attention(heads=8, kv_heads=2, head_width=16),
            ffn=SwiGlu(width=448),
            position=ROPE,
        ),
        data=Data(
            store=python_stdlib(),
            seq_len=128,
            stages=(
                Stage(
                    name="short",
                    steps=300,
                    batch_size=16,
                    mixture=(Share(source="prose", weight=0.7), Share(source="code", weight=0.3)),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=3e-3, end=3e-4, warmup_steps=20, total_steps=300)),
        checkpoints=Checkpoints(every_steps=100, keep_latest=2),
        evaluation=Evaluation(every_steps=150, windows=64),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )


def small() -> RunConfig:
    """What llama_8b_128k does to its base, done to `small_base`: 16 times the context, the same tokens per step."""
    base = small_base()
    return replace(
        base,
        name="long-small",
        start=FromRun(folder=base.name, step=300, optimizer="fresh"),
        data=replace(
            base.data,
            seq_len=2048,
            stages=(
                Stage(
                    name="long",
                    steps=40,
                    batch_size=1,
                    mixture=(Share(source="prose", weight=0.4), Share(source="code", weight=0.6)),
                ),
            ),
        ),
        optimizer=replace(base.optimizer, schedule=warmup_cosine(peak=3e-4, end=3e-5, warmup_steps=5, total_steps=40)),
        checkpoints=Checkpoints(every_steps=20, keep_latest=2),
        evaluation=Evaluation(every_steps=20, windows=8, batch_size=1),
    )
