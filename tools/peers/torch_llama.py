"""A peer of the bench: transformers' LLaMA in PyTorch, eager or compiled, as it is released.

    python tools/peers/torch_llama.py --size s --steps 10 [--eager]

Same shapes, batch, optimizer and precision as configs/bench.py; random tokens, which cost what others do. On AMD it
starts itself again with tools/peers/mkl_on_amd.c preloaded, without which MKL leaves AVX-512 alone.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from configs import bench
from jaxllm.bench.figures import Figures, line
from jaxllm.bench.process import age, most_memory
from jaxllm.models.config import SwiGlu
from jaxllm.models.count import flops_per_token
from jaxllm.run import RunConfig

UNTIMED = 2
SIZES = {"s": bench.s, "m": bench.m}
_PRELOADED = "JAXLLM_BENCH_BEGAN"  # when the process that started this one again had begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--locked", action="store_true", help="MKL as it is, for comparison")
    args = parser.parse_args()
    if not args.locked and _is_amd() and _PRELOADED not in os.environ:
        _start_preloaded()
    print(line(train(SIZES[args.size](), args.steps, compiled=not args.eager)))


def train(run: RunConfig, steps: int, *, compiled: bool) -> Figures:
    os.environ["HF_HUB_OFFLINE"] = "1"
    kept = tempfile.mkdtemp()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = kept  # compiled anew, as a first start is
    import torch
    import transformers

    model_config, data, adamw = run.model, run.data, run.optimizer
    assert isinstance(model_config.ffn, SwiGlu)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=model_config.vocab_size,
        hidden_size=model_config.width,
        intermediate_size=model_config.ffn.width,
        num_hidden_layers=model_config.layers,
        num_attention_heads=model_config.attention.heads,
        num_key_value_heads=model_config.attention.kv_heads,
        max_position_embeddings=data.seq_len,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).float().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(adamw.beta1, adamw.beta2), weight_decay=adamw.weight_decay, fused=True
    )
    forward = torch.compile(model) if compiled else model
    dice, rows, V = torch.Generator().manual_seed(1), data.stages[0].batch_size, model_config.vocab_size
    seconds, cpu, losses, first, began = [], [], [], 0.0, float(os.environ.get(_PRELOADED, 0)) or time.time() - age()
    for step in range(UNTIMED + steps):
        start, used = time.perf_counter(), time.process_time()
        tokens = torch.randint(0, V, (rows, data.seq_len + 1), generator=dice)
        logits = forward(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), adamw.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step == 0:
            first = time.time() - began
        if step >= UNTIMED:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
    memory = most_memory()
    shutil.rmtree(kept, ignore_errors=True)
    return Figures(
        peer="torch " + ("compiled" if compiled else "eager"),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        seconds=tuple(seconds),
        tokens=rows * data.seq_len,
        flops=flops_per_token(model_config, data.seq_len),
        causal_flops=flops_per_token(model_config, data.seq_len, causal=True),
        peak=_peak(),
        first=first,
        memory=memory,
        losses=(losses[0], losses[-1]),
        cpu=statistics.median(cpu),
    )


def _peak() -> float:
    import torch

    a = torch.ones(2048, 2048) * 0.01
    best = float("inf")
    for _ in range(9):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def _is_amd() -> bool:
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def _start_preloaded() -> None:
    source = Path(__file__).with_name("mkl_on_amd.c")
    library = Path(tempfile.gettempdir()) / f"jaxllm-mkl-{os.getuid()}-{source.stat().st_mtime_ns}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
        made.rename(library)
    more = {"LD_PRELOAD": str(library), _PRELOADED: repr(time.time() - age())}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | more)


if __name__ == "__main__":
    main()
