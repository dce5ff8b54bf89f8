"""LLaMA shapes whose steps are timed on one accelerator, in bfloat16: 1.3 and 6.7 billion parameters, 2,048 and 8,192
positions.

    python tools/bench.py run configs/bench_accelerator.py:llama_1b3_2k
    jaxllm plan configs/bench_accelerator.py:llama_7b_2k --chip h200 --gpus 1
    jaxllm train configs/bench_accelerator.py:llama_1b3_2k

They train on the text of configs/bench.py, with a tokenizer of the model's size, and attend to windows as a whole, as
peers do: so cuDNN can. By `jaxllm plan`, which cannot ask cuDNN and takes Pallas's attention instead, the smaller model
takes 53.4 of the 73.3 GiB that a H100 lends, the larger one 110.6 of the 129.2 of a H200. No H100 holds the larger one:
parameters, moments and gradients in float32 are 100.4 GiB, and with both moments in bfloat16, which no optimizer here
has, they would still be 75.3.
"""

from dataclasses import replace

from configs.bench import s
from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import TrainBpe
from jaxllm.models.config import Attention, Model, SwiGlu
from jaxllm.parallel.config import Compute, Named, Remat
from jaxllm.run import RunConfig
from jaxllm.train.config import Precision

VOCABULARY = 32_000


def llama_1b3_2k() -> RunConfig:
    """1.345 B parameters, 32,768 tokens a step."""
    return _small("llama-1b3-2k", seq_len=2048, batch_size=16)


def llama_1b3_8k() -> RunConfig:
    """The same at 8,192 positions."""
    return _small("llama-1b3-8k", seq_len=8192, batch_size=4)


def llama_7b_2k() -> RunConfig:
    """6.738 B parameters, 16,384 tokens a step."""
    return _large("llama-7b-2k", seq_len=2048, batch_size=8)


def llama_7b_8k() -> RunConfig:
    """The same at 8,192 positions."""
    return _large("llama-7b-8k", seq_len=8192, batch_size=2)


def _small(name: str, *, seq_len: int, batch_size: int) -> RunConfig:
    return _llama(name, 24, 2048, 16, 5504, seq_len, batch_size, Named(keep=("input", "qkv", "attention", "widened")))


def _large(name: str, *, seq_len: int, batch_size: int) -> RunConfig:
    return _llama(name, 32, 4096, 32, 11_008, seq_len, batch_size, Named(keep=("input", "attention")))


def _llama(
    name: str, layers: int, width: int, heads: int, ffn: int, seq_len: int, batch_size: int, remat: Remat
) -> RunConfig:
    base = s()
    [stage] = base.data.stages
    return replace(
        base,
        name=name,
        model=Model(
            vocab_size=VOCABULARY,
            width=width,
            layers=layers,
            attention=Attention(heads=heads, kv_heads=heads, head_width=width // heads),
            ffn=SwiGlu(width=ffn),
        ),
        data=replace(
            base.data,
            store=replace(python_stdlib(), tokenizer=TrainBpe(vocab_size=VOCABULARY)),
            seq_len=seq_len,
            attention="window",
            stages=(replace(stage, batch_size=batch_size),),
        ),
        precision=Precision(compute="bfloat16"),
        compute=Compute(remat=remat),
        checkpoints=Checkpoints(every_steps=1000, keep_latest=1),
    )
