"""Runs of the golden config, trained in this process: 40 steps in two stages, a checkpoint every 8 steps."""

from pathlib import Path

from jaxllm import app
from jaxllm.core.errors import EXIT_DONE
from jaxllm.run import RunConfig
from jaxllm.workspace import open_config

QUIET = ("evaluation.every_steps=null", "evaluation.windows=4", "logging.tensorboard=false")
KEPT = "checkpoints.keep_latest=9"
# A batch that spikes at step 20, judged at once, and left out after going back to step 16.
SPIKE = (
    'faults=[{"kind":"HugeBatch","step":20}]',
    "guard.spikes.min_history=8",
    "guard.spikes.window=16",
    "guard.spikes.recover_within=0",
    'guard.spikes.action={"kind":"Rewind","data":"skip_batch"}',
)


def golden(place: Path, *more: str, root: Path | None = None) -> tuple[RunConfig, Path]:
    """(config, run folder) with data and compiled programs cached in `place`, and the run in `root` or there too."""
    caches = (f"io.data_cache={place / 'data'}", f"io.compilation_cache={place / 'xla'}", f"io.root={root or place}")
    return open_config("tests/golden/config.py:golden", [*QUIET, *caches, *more])


def trained(run: RunConfig, folder: Path, stop_at: int | None = None) -> Path:
    """The folder of a run that was trained to its end, or to `stop_at`."""
    assert app.train(run, folder, stop_at=stop_at, profile=None, as_json=False) == EXIT_DONE
    return folder
