"""Make tests/golden/run_schemaN/, a run as this jaxllm writes it. Once per schema: an old run has to open for ever.

NPROC=2 python tools/make_stored_run.py
"""

import shutil
import tempfile
from pathlib import Path

from jaxllm import app
from jaxllm.core.config import override
from jaxllm.run import SCHEMA
from jaxllm.workspace import open_config, open_run, save_config

STEPS = 20
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "golden" / f"run_schema{SCHEMA}"
# What a run needs of its place, and a model that is small enough to be kept in the repository.
CHANGES = (
    "model.vocab_size=320",
    "data.store.tokenizer.vocab_size=320",
    "model.width=16",
    "model.layers=1",
    "model.ffn.width=24",
    "model.attention.heads=2",
    "model.attention.kv_heads=1",
    "optimizer.ema.decay=0.9",
    "checkpoints.every_steps=20",
    "checkpoints.keep_latest=1",
    "logging.tensorboard=false",
    "evaluation.every_steps=null",
)
_LEFT_OUT = ("lease*", "metrics.jsonl", "*.lock", "commit_success.txt")  # of this one place and time


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER.name} is there already: a stored run is never made again")
    with tempfile.TemporaryDirectory() as scratch:
        place = [f"io.root={scratch}", f"io.data_cache={scratch}/data", "io.compilation_cache=null"]
        run, folder = open_config("tests/golden/config.py:golden", [*CHANGES, *place])
        app.train(run, folder, stop_at=STEPS, profile=None, as_json=False)
        shutil.copytree(folder, FOLDER, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    # Not where it was made.
    save_config(override(open_run(FOLDER), ["io.root=runs", "io.data_cache=runs/data"]), FOLDER)
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    print(f"{FOLDER.name}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
