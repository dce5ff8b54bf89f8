"""SlimPajama-DC, 1.3B: ALiBi and muP, 330 billion tokens of deduplicated text, as far as it was published.

Reproduces the shape and size of https://huggingface.co/MBZUAI-LLM/SlimPajama-DC (https://arxiv.org/abs/2309.10818);
values from the model's config.json: vocabulary, sizes, ALiBi, embeddings_scale 14.6, width_scale 0.2775, logits
divided by the head's width; biases everywhere but in the head, as public code that opens BTLM's weights has them.
UNVERIFIED, taken from Crystal, which was trained with the same muP constants on the same machines: standard
deviations, learning rates, weight decay, shape of the schedule. Batch and warm-up are ours. The mixtures DC-1 to DC-6
were published as an image; the shares below are SlimPajama's own, as Crystal's phase 1 has them.

Cost: 329,999,450,112 tokens, 3.0e21 FLOPs (`jaxllm show`); 16 Cerebras CS-2.

The store stores/slimpajama holds one source for each of the seven, under the names below: SlimPajama-627B in GPT-NeoX's
tokenizer (50,277 ids; inferred from the size of the vocabulary).

    jaxllm train configs/slimpajama_dc_1b3.py:slimpajama_dc_1b3 data.store.path=/data/stores/slimpajama
    jaxllm train configs/slimpajama_dc_1b3.py:small
"""

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Alibi, Attention, LayerNorm, Model, SwiGlu
from jaxllm.models.mup import Mup
from jaxllm.optim.config import AdamW, LrMultiplier, warmup_linear
from jaxllm.parallel.config import Compute, Mesh
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, Logging, Precision

MUP = Mup()
STEPS = 157_356  # of 2,097,152 tokens: 330 billion


def _model(*, vocab_size: int, width: int, layers: int, heads: int, ffn: int) -> Model:
    return Model(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        attention=Attention(heads=heads, kv_heads=heads, head_width=width // heads, biases=("q", "k", "v", "o")),
        ffn=SwiGlu(width=ffn, bias=True),
        norm=LayerNorm(eps=1e-5),
        position=Alibi(),
        tied_embeddings=True,
    )


def slimpajama_dc_1b3() -> RunConfig:
    model = MUP.apply(_model(vocab_size=50_277, width=2048, layers=24, heads=16, ffn=5461))
    return RunConfig(
        name="slimpajama-dc-1b3",
        seed=1,
        model=model,
        data=Data(
            store=StoreAt(path="stores/slimpajama"),
            seq_len=2048,
            attention="window",
            stages=(
                Stage(
                    name="pretraining",
                    steps=STEPS,
                    batch_size=1024,
                    mixture=(
                        Share(source="commoncrawl", weight=0.5335),
                        Share(source="c4", weight=0.2665),
                        Share(source="github", weight=0.0496),
                        Share(source="arxiv", weight=0.0433),
                        Share(source="book", weight=0.0413),
                        Share(source="wikipedia", weight=0.0342),
                        Share(source="stackexchange", weight=0.0317),
                    ),
                ),
            ),
        ),
        optimizer=AdamW(
            schedule=warmup_linear(peak=0.012, end=0.00012, warmup_steps=375, decay_steps=STEPS - 375),
            eps=1e-9,
            lr_multipliers=(LrMultiplier(role="matrix", value=MUP.matrix_lr(model.width)),),
        ),
        precision=Precision(compute="bfloat16"),
        mesh=Mesh(dp=1, fsdp=-1),
        compute=Compute(remat="dots"),
        checkpoints=Checkpoints(every_steps=1000, keep_every=10_000),
        evaluation=Evaluation(every_steps=1000),
    )


def small() -> RunConfig:
    """The same parts in 1.1M parameters, four times as wide as what they are tuned at: minutes on a laptop."""
    mup = Mup(base_width=32)
    model = mup.apply(_model(vocab_size=2048, width=128, layers=4, heads=4, ffn=341))
    return RunConfig(
        name="slimpajama-dc-small",
        seed=1,
        model=model,
        data=Data(
            store=python_stdlib(),
            seq_len=128,
            attention="window",
            stages=(
                Stage(
                    name="pretraining",
                    steps=300,
                    batch_size=8,
                    mixture=(Share(source="prose", weight=0.5), Share(source="code", weight=0.5)),
                ),
            ),
        ),
        optimizer=AdamW(
            schedule=warmup_linear(peak=0.012, end=0.00012, warmup_steps=10, decay_steps=290),
            eps=1e-9,
            lr_multipliers=(LrMultiplier(role="matrix", value=mup.matrix_lr(model.width)),),
        ),
        checkpoints=Checkpoints(every_steps=100, keep_latest=2),
        evaluation=Evaluation(every_steps=150, windows=64),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )
