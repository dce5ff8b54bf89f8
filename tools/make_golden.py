"""Add this machine's numerics to tests/golden/golden.json, or begin it anew.

    NPROC=2 python tools/make_golden.py [--anew]

Values of one commit only: whatever moves them is named in the commit that runs this with --anew.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from jaxllm import app
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import StepRecord, read_steps
from jaxllm.workspace import open_config

STEPS = 20
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "golden.json"


def golden_records(root: Path) -> tuple[str, list[StepRecord]]:
    """(hash of the numerics fingerprint, the records of the first steps) of the golden run, trained in `root`."""
    overrides = [f"io.root={root}", f"io.data_cache={root / 'data'}", "io.compilation_cache=null"]
    quiet = ["logging.tensorboard=false", "evaluation.every_steps=null"]
    run, folder = open_config("tests/golden/config.py:golden", [*overrides, *quiet])
    app.train(run, folder, stop_at=STEPS, profile=None, as_json=False)
    start = read_journal(folder / "journal.jsonl")[0]
    return start["fingerprint"], list(read_steps(folder / "steps"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", action="store_true", help="forget the values of all other machines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        fingerprint, records = golden_records(Path(scratch))
    batches = [r.batch for r in records]
    known: dict[str, Any] = {"batches": batches, "losses": {}} if args.anew else json.loads(GOLDEN.read_text())
    if known["batches"] != batches:
        raise SystemExit("the batches are others than the recorded ones: the data order or the tokenizer moved")
    known["losses"][fingerprint] = [r.loss_bits for r in records]
    GOLDEN.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{GOLDEN.name}: numerics {fingerprint[:12]}, {len(known['losses'])} known")


if __name__ == "__main__":
    main()
