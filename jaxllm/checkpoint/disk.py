"""Whether a checkpoint fits on the disk, asked before anything is written. No jax."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.layout import list_steps, step_folder
from jaxllm.checkpoint.retention import most_at_once
from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, CheckpointError

# Arrays are compressed (zstd), which shrinks float32 weights by some 7% and can grow incompressible bytes by less than
# 0.5%; each array also has metadata of its own, and each checkpoint a handful of small files.
_GROWTH = 1.005
_PER_ARRAY, _PER_SAVE = 4096, 1 << 16


class DiskFullError(CheckpointError):
    """A checkpoint does not fit. Nothing half was left; with space the same command goes on from the last one."""

    exit_code = EXIT_SAVED_START_AGAIN


def save_bytes(array_bytes: Iterable[int]) -> int:
    """An upper bound of what one save writes, from the bytes of each array of the state."""
    sizes = list(array_bytes)
    return int(sum(sizes) * _GROWTH) + len(sizes) * _PER_ARRAY + _PER_SAVE


def run_bytes(config: Checkpoints, last_step: int, one_save: int, rollbacks: int = 0) -> int:
    """The most that all checkpoints of a run take at once; `one_save` is from `save_bytes`, `rollbacks` is how often
    the run may go back and leave its newest ones behind."""
    return (most_at_once(config, last_step) + rollbacks * config.keep_latest) * one_save


def free_bytes(folder: Path) -> int:
    """What this user can still write at `folder`, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def used_bytes(folder: Path) -> int:
    """What the files under `folder` hold; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def require_for_save(folder: Path, step: int, needed: int) -> None:
    """DiskFullError if the checkpoint of `step`, of `needed` bytes, does not fit beside the others."""
    free = free_bytes(folder)
    if free < needed:
        raise DiskFullError(
            f"{folder}: checkpoint {step} needs {readable(needed)} and {readable(free)} are free; nothing was written, "
            f"free {readable(needed - free)} and start again"
        )


def require_for_run(folder: Path, config: Checkpoints, last_step: int, one_save: int, rollbacks: int = 0) -> None:
    """CheckpointError if the checkpoints of a whole run do not fit, counting those that are there already.

    This one is for a person to mend (exit code 2): starting again would not help.
    """
    needed = run_bytes(config, last_step, one_save, rollbacks) - sum(
        used_bytes(step_folder(folder, s)) for s in list_steps(folder)
    )
    free = free_bytes(folder)
    if free < needed:
        at_once = run_bytes(config, last_step, 1, rollbacks)
        raise CheckpointError(
            f"{folder}: up to {at_once} checkpoints of {readable(one_save)} lie side by side in this run; that needs "
            f"{readable(needed)} more and {readable(free)} are free; free space, or lower checkpoints.keep_latest or "
            f"raise checkpoints.keep_every"
        )


def require_at(folder: Path, needed: int) -> None:
    """CheckpointError if `needed` bytes do not fit where `folder` is to be made. For a person to mend, as above."""
    if (free := free_bytes(folder)) < needed:
        raise CheckpointError(f"{folder} needs {readable(needed)} and {readable(free)} are free; make room")


def readable(count: float) -> str:
    """Bytes for people: '1.5 GB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
