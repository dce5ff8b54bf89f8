"""How fast a config trains on this machine, by itself and beside peers.

    python tools/bench.py run configs/bench.py:s [field=value ...] [--steps 20]
    python tools/bench.py compare --rounds 5 --size s [--eager] [--json FILE]

`run` trains the config by the real command, in one process, and prints its figures (jaxllm/bench/figures.py).
`compare` runs PyTorch's LLaMA (tools/peers/torch_llama.py) and ours in turns, A B A B, and prints a table of medians
and of the ratios of each round. Nothing else should run on the machine meanwhile.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

from jaxllm.bench.figures import line, loop_text
from jaxllm.bench.rounds import race, rows, table
from jaxllm.core.errors import JaxllmError, last_words
from jaxllm.workspace import open_config

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("config")
    run.add_argument("overrides", nargs="*")
    run.add_argument("--steps", type=int, default=20, help="that are timed")
    run.set_defaults(do=_run)
    compare = commands.add_parser("compare")
    compare.add_argument("--size", choices=("s", "m"), required=True)
    compare.add_argument("--rounds", type=int, default=5)
    compare.add_argument("--steps", type=int, default=20)
    compare.add_argument("--eager", action="store_true", help="PyTorch without torch.compile too")
    compare.add_argument("--bf16", action="store_true", help="ours in bfloat16 too")
    compare.add_argument("--json", type=Path, metavar="FILE", help="keep all figures")
    compare.set_defaults(do=_compare)
    args = parser.parse_args()
    try:
        args.do(args)
    except (JaxllmError, OSError) as err:
        if (said := last_words(err)) is None:
            raise
        print(f"bench: {said[0]}", file=sys.stderr)
        sys.exit(said[1])


def _run(args: argparse.Namespace) -> None:
    from jaxllm.bench.trained import measure
    from jaxllm.core.environment import settle_threads
    from jaxllm.core.memory import keep_memory

    settle_threads()
    keep_memory()
    with tempfile.TemporaryDirectory(prefix="jaxllm-bench-") as scratch:
        run, folder = open_config(args.config, [*args.overrides, f"io.root={scratch}"])
        figures = measure(run, folder, steps=args.steps)
    print(loop_text(figures), file=sys.stderr)
    print(line(figures))


def _compare(args: argparse.Namespace) -> None:
    python, steps = sys.executable, ["--steps", str(args.steps)]
    torch = [python, str(ROOT / "tools/peers/torch_llama.py"), "--size", args.size, *steps]
    ours = [python, str(ROOT / "tools/bench.py"), "run", f"{ROOT}/configs/bench.py:{args.size}"]
    contenders = {"torch compiled": torch}
    if args.eager:
        contenders["torch eager"] = [*torch, "--eager"]
    contenders["jaxllm"] = [*ours, *steps]
    if args.bf16:
        contenders["jaxllm bfloat16"] = [*ours, "precision.compute=bfloat16", *steps]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    found = race(contenders, args.rounds, said=lambda text: print(text, file=sys.stderr, flush=True))
    if args.json is not None:
        every = {name: [dataclasses.asdict(f) for f in each] for name, each in found.items()}
        args.json.write_text(json.dumps(every, indent=1) + "\n")
    print("\n".join(table(rows(found))))


if __name__ == "__main__":
    main()
