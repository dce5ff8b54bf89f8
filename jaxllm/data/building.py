"""The folder in which a store is built: whose work it holds, who works on it, and how it becomes the store.

In OUT.building there are
    lock      held (flock) by the process that builds; names it
    work/     plan.json and the results of restartable tasks
    store/    the files of the store; renamed to OUT when they are complete
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jaxllm.core.config import Json, differences, encode
from jaxllm.core.errors import DataError
from jaxllm.core.files import fsync_dir, make_folder, read_json, sha256_file, write_json_atomic
from jaxllm.data.config import DataRecipe, TokenizerFile
from jaxllm.data.inputs import Input
from jaxllm.data.manifest import MANIFEST, SCHEMA, versions
from jaxllm.data.store import Store
from jaxllm.data.work import Progress

OnStale = Literal["refuse", "discard"]


def plan_of(recipe: DataRecipe, inputs: Sequence[Input], *, shard_tokens: int, unit_bytes: int, skip_bad: bool) -> Json:
    """Everything that decides the results of tasks. Work begun under one plan is never continued under another."""
    tokenizer = sha256_file(recipe.tokenizer.path) if isinstance(recipe.tokenizer, TokenizerFile) else None
    return {
        "schema": SCHEMA,
        "recipe": encode(recipe),
        "shard_tokens": shard_tokens,
        "unit_bytes": unit_bytes,
        "skip_bad": skip_bad,
        "tokenizer": tokenizer,
        "versions": encode(versions()),
        "inputs": [i.listed() for i in inputs],
    }


def building_folder(out: Path) -> Path:
    """Where the store `out` is built."""
    return out.with_name(out.name + ".building")


@contextmanager
def locked(out: Path, progress: Progress, *, wait: bool) -> Iterator[Path]:
    """Hold the building folder of `out`. DataError names the holder if there is one, unless `wait`."""
    folder = building_folder(out)
    descriptor = None
    while descriptor is None:
        make_folder(folder)
        descriptor = _lock(folder / "lock", progress, wait)
    try:
        for spent in out.parent.glob(f".{_glob_safe(out.name)}.spent-*"):
            shutil.rmtree(spent, ignore_errors=True)
        yield folder
    finally:
        os.close(descriptor)


def begin(building: Path, plan: Json, on_stale: OnStale) -> Path:
    """The work folder, new or with the results of an interrupted preparation that had the same plan."""
    work, store = building / "work", building / "store"
    if (work / "plan.json").exists():
        different = differences(read_json(work / "plan.json"), plan)
        if different and on_stale == "refuse":
            raise DataError(
                f"{building}: an interrupted preparation of something else ({different[0]}); delete the folder to "
                f"begin anew, or name another --out"
            )
        if different:
            _throw_away(building, store, work)
    for folder in (store, *(work / name for name in ("survey", "scan", "encoded", "shards"))):
        make_folder(folder)
    if not (work / "plan.json").exists():
        write_json_atomic(work / "plan.json", plan)
    return work


def publish(building: Path, out: Path, files: Sequence[str]) -> None:
    """Give the finished store its name, and remove the rest. The lock must be held."""
    for leftover in (building / "store").iterdir():
        if leftover.name not in files:  # the beginning of a file that a killed process was writing
            leftover.unlink()
    fsync_dir(building / "store")
    os.replace(building / "store", out)
    fsync_dir(out.parent)
    discard(building, out)


def discard(building: Path, out: Path) -> None:
    """Remove a building folder that has nothing to give. The lock must be held."""
    # Renamed first: a process that waits for the lock must not find, or make, a folder that is being emptied.
    spent = out.with_name(f".{out.name}.spent-{os.getpid()}")
    os.replace(building, spent)
    shutil.rmtree(spent, ignore_errors=True)


def existing(out: Path, plan: Json, inputs: Sequence[Input]) -> Store | None:
    """The store at `out` if it was made by this plan, None if nothing is there. DataError if something else is."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise DataError(f"{out}: exists and is not a token store; name another --out")
    store = Store.open(out)
    made = {"recipe": encode(store.manifest.recipe), "shard_tokens": store.manifest.shard_tokens}
    different = differences(made, {name: plan[name] for name in made})
    if plan["tokenizer"] not in (None, sha256_file(store.tokenizer_path)):
        different.append("the tokenizer file has changed")
    different += _changed_inputs(store, inputs)
    if different:
        raise DataError(f"{out}: holds another store ({different[0]}); remove it, or name another --out")
    return store


def _throw_away(building: Path, *folders: Path) -> None:
    """Remove folders so that a kill at any moment leaves none that looks whole; the last one holds the plan."""
    for folder in folders:
        shutil.rmtree(building / "old", ignore_errors=True)
        if folder.exists():
            os.replace(folder, building / "old")
    shutil.rmtree(building / "old", ignore_errors=True)


def _glob_safe(name: str) -> str:
    """A name in which no character is a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _changed_inputs(store: Store, inputs: Sequence[Input]) -> list[str]:
    text = (store.path / store.manifest.inputs_file).read_text()
    then = [json.loads(line) for line in text.splitlines()]
    names = [s.name for s in store.manifest.recipe.sources]
    if len(then) != len(inputs):
        return [f"made from {len(then)} input files, and now there are {len(inputs)}"]
    for old, new in zip(then, inputs, strict=True):
        same = (old["source"], old["origin"], old["bytes"]) == (names[new.source], new.origin, new.size)
        if not same or new.sha256 not in (None, old["sha256"]):
            return [f"input {new.origin} has changed"]
    return []


def _lock(path: Path, progress: Progress, wait: bool) -> int | None:
    """A descriptor that holds the lock, or None if its file was taken away meanwhile."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
            if not wait:
                raise DataError(
                    f"{path.parent}: another preparation is at work here ({holder}); wait for it, or name another --out"
                ) from None
            progress("waiting for another preparation", 0, 1)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
