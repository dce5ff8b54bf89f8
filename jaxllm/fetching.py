"""Runs that lie elsewhere, read through copies: what commands that only look at a record need, by fsspec. No jax."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from jaxllm.core.errors import RunError

# Of a run folder, what a record is. The journal comes first: steps that it does not know of yet are told apart, while
# one that knows of steps which were not fetched would not hold.
_FILES = ("run.json", "metrics.jsonl", "tokenizer.json", "special_tokens.json", "lease.json")
_FOLDERS = ("steps", "losses")
_JOURNAL = "journal.jsonl"


@contextmanager
def at_hand(run: str, report: Callable[[str, int, int], None] = lambda *_: None) -> Iterator[Path]:
    """The folder of a run as it is; or for an address (`gs://bucket/runs/x`, `ssh://host/...`, whatever fsspec opens) a
    copy of its record, without checkpoints, that is gone afterwards. The run may be running.

    RunError: nothing opens such addresses here, there is no run, or it cannot be read.
    """
    if "://" not in run:
        yield Path(run)
        return
    with tempfile.TemporaryDirectory(prefix="jaxllm-") as scratch:
        folder = Path(scratch) / (PurePosixPath(run.rstrip("/")).name or "run")
        folder.mkdir()
        _copy(run, folder, report)
        yield folder


def _copy(address: str, folder: Path, report: Callable[[str, int, int], None]) -> None:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(address)
        _fetch(files, f"{root}/{_JOURNAL}", folder / _JOURNAL)
        names = [name for name in _FILES if files.exists(f"{root}/{name}")]
        for part in _FOLDERS:
            names += [_below(path, root) for path in files.find(f"{root}/{part}")]
        for i, name in enumerate(names):
            report("fetch", i + 1, len(names))
            _fetch(files, f"{root}/{name}", folder / name)
    except (ImportError, ValueError) as err:
        raise RunError(f"{address}: {_line(err)}; see fsspec for what opens such an address") from None
    except FileNotFoundError:
        raise RunError(f"{address} is no run: it has no {_JOURNAL}") from None
    except Exception as err:  # a library of each protocol, with errors of its own
        raise RunError(f"{address} cannot be read: {_line(err)}") from None


def _below(path: str, root: str) -> str:
    """The name of a file in the run. ValueError if it is not in there."""
    name = PurePosixPath("/" + path.lstrip("/")).relative_to("/" + root.lstrip("/"))
    if ".." in name.parts:
        raise ValueError(f"{path} does not lie in the run")
    return name.as_posix()


def _fetch(files: Any, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.open(source, "rb") as here, target.open("wb") as copy:
            shutil.copyfileobj(here, copy)
    except FileNotFoundError:
        # Replaced while it was fetched; but the journal has to be there.
        if target.name == _JOURNAL:
            raise
        target.unlink(missing_ok=True)


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:300] or type(err).__name__
