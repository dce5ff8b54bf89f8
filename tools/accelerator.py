"""Take the bench to a machine with an accelerator and no network: gather what it lacks here, install and run it there.

    python tools/accelerator.py gather                   # here: wheels for Python 3.12 on Linux, into .wheels/
    python3 tools/accelerator.py run --seconds 540       # there, in a checkout that has .wheels/
    python3 tools/accelerator.py run --only check,llama_1b3_2k
    python3 tools/accelerator.py run --small             # the same on a machine without one, with models of seconds

`run` needs jax with its accelerator's plugin, and takes of everything else what is installed and new enough. Each row
of CASES is a process with a time limit of its own, whose result goes into .accelerator/results.json; what has one there
is not done again, so the same command goes on where time ran out. Last comes a table of all results.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS, WORK = ROOT / ".wheels", ROOT / ".accelerator"

# Left to the machine: what has to fit its drivers and its jax, and what is large and in every image for such work.
THERE = {"jax", "jaxlib", "libtpu", "numpy", "scipy", "ml-dtypes", "pyarrow", "pillow", "grpcio", "hf-xet"}
THERE |= {"tensorboard", "tensorboard-data-server", "protobuf"}
# What of the tested versions a run needs: the dependencies of jaxllm and theirs.
# fmt: off
CARRIED = [
    "absl-py", "aiofiles", "annotated-doc", "annotated-types", "anyio", "array-record", "click", "cloudpickle",
    "etils", "filelock", "flax", "fsspec", "grain", "h11", "httpcore2", "httpx2", "huggingface-hub", "humanize",
    "idna", "markdown-it-py", "mdurl", "msgpack", "opt-einsum", "optax", "orbax-checkpoint", "packaging",
    "portpicker", "prometheus-client", "psutil", "pydantic", "pydantic-core", "pygments", "pyyaml", "rich",
    "safetensors", "setuptools", "shellingham", "simplejson", "tensorboardx", "tensorstore", "tokenizers", "tqdm",
    "treescope", "truststore", "typer", "typing-extensions", "typing-inspection", "uvloop", "zipp", "zstandard",
]
# fmt: on
LIMIT_MIB = 64
LEAST = 30  # seconds that any case takes

BENCH, FLOAT8 = "configs/bench_accelerator.py", ["precision.projections=float8"]
# name -> (seconds at most, what it is), in order of worth; large ones only where the memory is.
CASES: dict[str, tuple[int, list[str]]] = {
    "check": (180, ["check", "model.attention.head_width=64", "data.attention=window"]),  # as the bench attends
    "llama_1b3_2k": (150, ["step", f"{BENCH}:llama_1b3_2k"]),
    "llama_1b3_2k_float8": (180, ["step", f"{BENCH}:llama_1b3_2k", *FLOAT8]),
    "llama_7b_2k": (180, ["step", f"{BENCH}:llama_7b_2k"]),
    "llama_7b_2k_float8": (210, ["step", f"{BENCH}:llama_7b_2k", *FLOAT8]),
    "llama_1b3_8k": (150, ["step", f"{BENCH}:llama_1b3_8k"]),
    "llama_7b_8k": (180, ["step", f"{BENCH}:llama_7b_8k"]),
    "llama_7b_2k_qkv": (
        180,
        ["step", f"{BENCH}:llama_7b_2k", 'compute.remat={"kind":"Named","keep":["input","qkv","attention"]}'],
    ),
    "loop": (240, ["loop", f"{BENCH}:llama_1b3_2k"]),
    "curve": (300, ["curve", f"{BENCH}:llama_1b3_2k"]),
    "curve_float8": (300, ["curve", f"{BENCH}:llama_1b3_2k", *FLOAT8]),
    "check_documents": (180, ["check"]),
    "check_float8": (180, ["check", *FLOAT8]),
}
NEEDS_GIB = {name: 125 for name in CASES if name.startswith("llama_7b")}
# What makes a case one of seconds on a CPU: everything but the numbers stays.
# fmt: off
SMALL = [
    "model.width=64", "model.layers=2", "model.vocab_size=512", "model.ffn.width=96", "model.attention.heads=4",
    "model.attention.kv_heads=4", "model.attention.head_width=16", "data.seq_len=128",
    "data.store.tokenizer.vocab_size=512", "data.stages.0.batch_size=2",
]
# fmt: on


def gather(into: Path) -> int:
    """Wheels of the tested versions, those of CARRIED alone."""
    sys.path.insert(0, str(ROOT))
    from tools.uv_constraints import read_constraints

    pins = read_constraints(ROOT / "launch/constraints-3.12.txt")
    if missing := [name for name in CARRIED if name not in pins]:
        print(f"accelerator: launch/constraints-3.12.txt has no {', '.join(missing)}", file=sys.stderr)
        return 2
    shutil.rmtree(into, ignore_errors=True)
    # pip takes a platform by its very name, and wheels say the oldest that will do.
    platforms = [f"manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17, 12)]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--dest", str(into)]
    for platform in platforms:
        command += ["--platform", platform]
    if code := subprocess.run([*command, *(f"{name}=={pins[name]}" for name in CARRIED)], check=False).returncode:
        return code
    wheels = list(into.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.1f} MiB, in {into}; left to the machine: {', '.join(sorted(THERE))}")
    if size > LIMIT_MIB:
        print(f"accelerator: more than the {LIMIT_MIB} MiB that travel at once", file=sys.stderr)
        return 1
    return 0


def install(wheels: Path, work: Path) -> Path:
    """An environment over the one that runs this; its Python. Done once, unless the wheels change."""
    place = work / "venv"
    python = place / "bin/python"
    stamp, holds = place / ".wheels", "\n".join(sorted(path.name for path in wheels.glob("*.whl")))
    if stamp.is_file() and stamp.read_text() == holds:
        return python
    shutil.rmtree(place, ignore_errors=True)
    # Without a pip of its own: what that takes is missing from some systems' Python.
    bare = ["--without-pip", "--system-site-packages"]
    subprocess.run([sys.executable, "-m", "venv", *bare, str(place)], check=True)
    # If this Python is of an environment itself, the system's packages are not its own: they are named as well.
    inner = place / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    (inner / "outer.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    asked = "import importlib.metadata as m; print(m.version('jax'))"
    jax = subprocess.run([str(python), "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--no-index", "--find-links", str(wheels)]
    subprocess.run([*pip, *needed, "setuptools>=77", f"jax=={jax}"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    stamp.write_text(holds)
    return python


def environment(work: Path) -> dict[str, str]:
    """Of every case: the flags of the table for GPUs where there is one, and caches that stay."""
    sys.path.insert(0, str(ROOT))
    from jaxllm.core.xla_flags import settle_flags

    env = os.environ | {"PYTHONPATH": str(ROOT), "JAXLLM_BENCH_WORK": str(work)}
    if memory_gib() is not None:
        env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
        settle_flags("table", env, "gpu")
    return env


def memory_gib() -> float | None:
    """Of the first GPU; None where there is none."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[0]) / 1024
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return None


def run(wheels: Path, work: Path, *, seconds: float, only: list[str], small: bool) -> int:
    """All cases that fit the time and have no result; 1 if one failed."""
    end = time.monotonic() + seconds
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "results.json"
    every: dict[str, dict[str, object]] = json.loads(kept.read_text()) if kept.is_file() else {}
    python, env, memory = install(wheels, work), environment(work), memory_gib()
    print(f"installed; {end - time.monotonic():.0f} s left", flush=True)
    for name, (limit, what) in CASES.items():
        if (only and name not in only) or ("error" not in every.get(name, {"error": "not done"})):
            continue
        if memory is not None and memory < NEEDS_GIB.get(name, 0):
            print(f"{name}: needs {NEEDS_GIB[name]} GiB", flush=True)
            continue
        left = min(limit, end - time.monotonic())
        if left < LEAST:
            print(f"{name}: no time left; the same command goes on here", flush=True)
            break
        print(f"{name} ...", end=" ", flush=True)
        command = [str(python), str(ROOT / "tools/accelerator_case.py"), *what]
        if small and what[0] != "check":
            command += SMALL
        every[name] = result_of(command, env, left, work / f"{name}.log") | ({"small": True} if small else {})
        whole = kept.with_suffix(".new")
        whole.write_text(json.dumps(every, indent=1) + "\n")
        whole.replace(kept)
        print(every[name].get("error", "done"), f"({end - time.monotonic():.0f} s left)", flush=True)
    print("\n".join(table({name: every[name] for name in CASES if name in every})))
    return int(any("error" in found for found in every.values()))


def result_of(command: list[str], env: dict[str, str], limit: float, log: Path) -> dict[str, object]:
    """What a case printed as its last line of JSON, or how it went wrong."""
    with log.open("w") as file:
        try:
            done = subprocess.run(command, env=env, timeout=limit, stdout=subprocess.PIPE, stderr=file, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {limit:.0f} s"}
    if done.returncode == 0:
        for line in reversed(done.stdout.decode().splitlines()):
            if line.startswith("{"):
                found: dict[str, object] = json.loads(line)
                return found
    said = [line for line in log.read_text().splitlines() if re.search(r"error|exhausted|jaxllm:", line, re.IGNORECASE)]
    return {"error": f"left with {done.returncode}: {(said or ['it said nothing'])[-1][:300]}; {log}"}


def table(every: dict[str, dict[str, object]]) -> list[str]:
    """In Markdown: a row for each case."""
    heads = [
        "",
        "on",
        "tokens/s",
        "s a step",
        "MFU",
        "memory, GiB",
        "to compile, s",
        "loss, first and last (of a curve the mean of 20)",
    ]
    columns = {"speed": ",.0f", "step": ".4f", "mfu": ".1%", "memory": ".1f", "compiled": ".0f"}
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in every.items():
        if "error" in found:
            lines.append(f"| {name} | {found['error']} | | | | | | |")
        elif "said" in found:
            lines.append(f"| {name} | {found['said']} | | | | | | |")
        else:
            cells = [name, found["device"]]
            for key, form in columns.items():
                value = found.get(key)
                cells.append("" if value is None else format(value, form))
            losses = found["losses"]
            assert isinstance(losses, list)
            cells.append(f"{losses[0]:.4f}, {found.get('last_20', losses[-1]):.4f}")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("gather", "run"):
        command = commands.add_parser(name)
        command.add_argument("--wheels", type=Path, default=WHEELS)
        if name == "run":
            command.add_argument("--work", type=Path, default=WORK, help="environment, caches, results")
            command.add_argument("--seconds", type=float, default=540, help="for all that is done by this call")
            command.add_argument("--only", default="", help=f"cases, by commas, of {', '.join(CASES)}")
            command.add_argument("--small", action="store_true", help="tiny models, for a try on a CPU")
    args = parser.parse_args()
    if args.command == "gather":
        return gather(args.wheels)
    only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in only if name not in CASES]:
        parser.error(f"--only {','.join(unknown)}: not among {', '.join(CASES)}")
    try:
        return run(args.wheels, args.work.resolve(), seconds=args.seconds, only=only, small=args.small)
    except subprocess.CalledProcessError as err:  # pip has said why
        print(f"accelerator: {' '.join(map(str, err.cmd))[:200]} left with {err.returncode}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
