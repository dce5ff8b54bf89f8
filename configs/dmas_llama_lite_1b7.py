"""DMaS-LLaMa-Lite, 1.7B on FineWeb-Edu with one or two workstation GPUs, as far as it was published.

Reproduces https://huggingface.co/McGill-DMaS/DMaS-LLaMa-Lite-step-43.5k (https://arxiv.org/abs/2412.13335); values from
McGill-DMaS/DMaS-LLaMa-Lite-Training-Code (presets.py '2b', models/llama.py, train.py). The flags that were really
passed are unpublished: batch and learning rates are the script's defaults. Its cosine is planned over 19,073 updates,
and every restart stretches it by the updates already done; when those restarts were is unpublished (and the card says
linear). Here it is one cosine over the 43,500 updates that were released.

Cost: 22,806,528,000 tokens (the card says about 20 billion), 2.4e20 FLOPs (`jaxllm show`); one or two RTX A6000.

The store stores/fineweb-edu holds the source `fineweb-edu`: FineWeb-Edu in GPT-2's tokenizer, one <|endoftext|> between
documents (they put it before each document). The table has 50,304 rows, of which the last 47 stand for no token; the
released checkpoints were cut to 50,257.

    jaxllm train configs/dmas_llama_lite_1b7.py:dmas_llama_lite_1b7 data.store.path=/data/stores/fineweb-edu
    jaxllm train configs/dmas_llama_lite_1b7.py:small
"""

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Attention, Model, Rope, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.parallel.config import Compute
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, Logging, Precision

STEPS = 43_500
RELEASED = (2_700, 3_300, 5_100, 7_500, 15_700, 20_000, 23_900, 35_000, 40_500, 43_500)


def dmas_llama_lite_1b7() -> RunConfig:
    return RunConfig(
        name="dmas-llama-lite-1b7",
        seed=1337,
        model=Model(
            vocab_size=50_304,
            width=2048,
            layers=36,
            attention=Attention(heads=32, kv_heads=8, head_width=64),
            ffn=SwiGlu(width=5120),
            position=Rope(theta=500_000.0),
        ),
        data=Data(
            store=StoreAt(path="stores/fineweb-edu"),
            seq_len=1024,
            attention="window",  # unverified: the loader is missing from the repository
            stages=(
                Stage(
                    name="pretraining",
                    steps=STEPS,
                    batch_size=512,  # 524,288 tokens
                    mixture=(Share(source="fineweb-edu", weight=1.0),),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=6e-4, end=6e-5, warmup_steps=715, total_steps=STEPS)),
        precision=Precision(compute="bfloat16"),
        compute=Compute(micro_batch=16),  # ours
        checkpoints=Checkpoints(every_steps=500, keep_steps=RELEASED),
        evaluation=Evaluation(every_steps=500),
    )


def small() -> RunConfig:
    """The same parts in 1.2M parameters: minutes on a laptop."""
    return RunConfig(
        name="dmas-small",
        seed=1337,
        model=Model(
            vocab_size=2048,
            width=128,
            layers=4,
            attention=Attention(heads=8, kv_heads=2, head_width=16),
            ffn=SwiGlu(width=320),
            position=Rope(theta=500_000.0),
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
                    mixture=(Share(source="prose", weight=1.0),),
                ),
            ),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=3e-3, end=3e-4, warmup_steps=12, total_steps=300)),
        checkpoints=Checkpoints(every_steps=100, keep_latest=2),
        evaluation=Evaluation(every_steps=150, windows=64),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )
