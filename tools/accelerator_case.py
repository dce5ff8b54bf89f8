"""One case of tools/accelerator.py, in a process of its own; its last line is what it found, as JSON.

    python tools/accelerator_case.py step CONFIG [field=value ...]     # the step alone, on random tokens
    python tools/accelerator_case.py loop CONFIG [field=value ...]     # the real loop, by tools/bench.py
    python tools/accelerator_case.py curve CONFIG [field=value ...]    # the losses of 200 steps of the real loop
    python tools/accelerator_case.py check [field=value ...]           # is a run on this device bitwise repeatable?

`step` takes neither disk nor text: the state of the largest models is more than many machines have to save.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = Path(os.environ.get("JAXLLM_BENCH_WORK", ROOT / ".accelerator"))
CACHES = [f"io.data_cache={WORK / 'data'}", f"io.compilation_cache={WORK / 'xla'}"]
UNTIMED, TIMED, CURVE = 3, 12, 200
CONFIG = "tests/golden/config.py:golden"

Json = dict[str, Any]


def step(config: str, overrides: list[str]) -> Json:
    """The compiled step of a run, timed one by one."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxllm.assembly import start_devices
    from jaxllm.models.count import flops_per_token
    from jaxllm.plan.measure import main_batch
    from jaxllm.train.hardware import peak_flops
    from jaxllm.workspace import open_config

    run, _ = open_config(config, [*overrides, *CACHES])
    parts, batch, S = start_devices(run), main_batch(run), run.data.seq_len
    parts.check_step_batches()
    dice = np.random.default_rng(0)
    tokens = dice.integers(0, run.model.vocab_size, (batch, S + 1), dtype=np.int32)
    arrays = {
        "inputs": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "segments": np.ones((batch, S), np.int32),
        "positions": np.tile(np.arange(S, dtype=np.int32), (batch, 1)),
        "loss_mask": np.ones((batch, S), bool),
    }
    state, given, lr = parts.initial_state(), parts.place(arrays), jnp.float32(1e-4)
    began = time.perf_counter()
    compiled = parts.step.lower(state, given, lr).compile()
    took = time.perf_counter() - began
    seconds, losses = [], []
    for _ in range(UNTIMED + TIMED):
        began = time.perf_counter()
        state, metrics = compiled(state, given, lr)
        losses.append(float(metrics.loss))  # waits
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[UNTIMED:])
    peak, origin = peak_flops(run.precision.compute)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    planned, text = compiled.memory_analysis(), compiled.as_text()
    return about(parts.attention) | {
        "speed": batch * S / median,
        "step": median,
        "mfu": batch * S / median * flops_per_token(run.model, S) / peak,
        "mfu_causal": batch * S / median * flops_per_token(run.model, S, causal=True) / peak,
        "peak": f"{peak:.4g}, {origin}",
        "memory": None if memory is None else memory / 2**30,
        "temporaries": None if planned is None else planned.temp_size_in_bytes / 2**30,
        "compiled": took,
        "seconds": seconds,
        "losses": losses,
        "float8_products": 0 if text is None else text.count("__cublas$lt$matmul$f8"),
    }


def about(attention: object = "") -> Json:
    import jax
    import jaxlib

    device = jax.devices()[0]
    versions = f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {device.client.platform_version.split(chr(10))[0]}"
    return {"device": device.device_kind, "versions": versions, "attention": str(attention)}


def loop(config: str, overrides: list[str]) -> Json:
    """tools/bench.py in the place of this process's work: feed, records, TensorBoard, a save at the end."""
    command = [sys.executable, str(ROOT / "tools/bench.py"), "run", config, *overrides, *CACHES, "--steps", str(TIMED)]
    [line] = [text for text in checked(command).splitlines() if text.startswith("FIGURES ")]
    found = json.loads(line.removeprefix("FIGURES "))
    median = statistics.median(found["seconds"])
    speed = found["tokens"] / median
    return (
        about()
        | found
        | {"speed": speed, "step": median, "mfu": speed * found["flops"] / found["peak"], "memory": None}
    )


def curve(config: str, overrides: list[str]) -> Json:
    """Losses of the first steps of the real loop, and its median speed."""
    from jaxllm.ledger.records import read_steps
    from jaxllm.workspace import open_config

    root = WORK / "curves"
    shutil.rmtree(root, ignore_errors=True)
    changes = [*overrides, *CACHES, f"io.root={root}", "logging.every_steps=1"]
    _, folder = open_config(config, changes)
    checked([sys.executable, "-m", "jaxllm", "train", config, *changes, "--stop-at", str(CURVE), "--json"])
    records = list(read_steps(folder / "steps"))
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [x["seconds_per_step"] for x in lines if x.get("seconds_per_step")][UNTIMED:]
    mfu = statistics.median(x["mfu"] for x in lines if x.get("mfu"))
    shutil.rmtree(root)
    median = statistics.median(seconds)
    losses = [r.loss for r in records]
    return about() | {
        "speed": records[-1].tokens / median,
        "step": median,
        "mfu": mfu,
        "last_20": statistics.mean(x for x in losses[-20:] if x is not None),
        "losses": losses,
    }


def check(overrides: list[str]) -> Json:
    """A run that is stopped, resumed and executed again from its start on this device."""
    root = WORK / "check"
    shutil.rmtree(root, ignore_errors=True)
    changes = [*CACHES, f"io.root={root}", "precision.compute=bfloat16", "checkpoints.keep_latest=9", *overrides]
    train = [sys.executable, "-m", "jaxllm", "train", CONFIG, *changes]
    checked([*train, "--stop-at", "12"])
    checked([*train, "--stop-at", "24"])
    folder = root / "golden"
    checked([sys.executable, "-m", "jaxllm", "verify", str(folder)])
    command = [sys.executable, "-m", "jaxllm", "replay", str(folder), "--from", "0", "--to", "24", "--json"]
    return about() | {"said": f"stopped, resumed, replayed: {json.loads(checked(command))['class']}"}


def checked(command: list[str]) -> str:
    """What a command of ours printed; this process ends as it did if it failed."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"error: {' '.join(command[1:4])} left with {done.returncode}", file=sys.stderr)
        sys.exit(1)
    return done.stdout


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    kind, *rest = sys.argv[1:]
    cases = {"step": step, "loop": loop, "curve": curve}
    print(json.dumps(check(rest) if kind == "check" else cases[kind](rest[0], rest[1:])))
