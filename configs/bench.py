"""Small LLaMAs whose steps are timed beside those of other stacks: fixed shapes, optimizer and precision.

    python tools/bench.py run configs/bench.py:s
    python tools/bench.py compare --size s --rounds 5
    jaxllm train configs/bench.py:s

They train on the quickstart's text, with a tokenizer of their own size.
"""

from dataclasses import replace

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage, TrainBpe
from jaxllm.models.config import Attention, Model, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.run import RunConfig
from jaxllm.train.config import Logging

STEPS = 1000


def s() -> RunConfig:
    """10.5 M parameters, 4,096 tokens a step."""
    return _llama("bench-s", layers=8, width=256, heads=4, ffn=688, vocab_size=8192, seq_len=512, batch_size=8)


def m() -> RunConfig:
    """58 M parameters, 4,096 tokens a step."""
    return _llama("bench-m", layers=8, width=512, heads=8, ffn=1376, vocab_size=32_000, seq_len=1024, batch_size=4)


def _llama(
    name: str, *, layers: int, width: int, heads: int, ffn: int, vocab_size: int, seq_len: int, batch_size: int
) -> RunConfig:
    mixture = (Share(source="prose", weight=0.3), Share(source="code", weight=0.7))
    return RunConfig(
        name=name,
        seed=1,
        model=Model(
            vocab_size=vocab_size,
            width=width,
            layers=layers,
            attention=Attention(heads=heads, kv_heads=heads, head_width=width // heads),
            ffn=SwiGlu(width=ffn),
        ),
        data=Data(
            store=replace(python_stdlib(), tokenizer=TrainBpe(vocab_size=vocab_size)),
            seq_len=seq_len,
            stages=(Stage(name="all", steps=STEPS, batch_size=batch_size, mixture=mixture),),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=3e-4, end=3e-5, warmup_steps=10, total_steps=STEPS)),
        checkpoints=Checkpoints(every_steps=10),
        # Every step is a line with its time: what is measured is the loop with all that it writes.
        logging=Logging(every_steps=1),
    )
