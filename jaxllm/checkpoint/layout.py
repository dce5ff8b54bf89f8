"""The files of checkpoints: names, what must be there, what is moved aside. No jax, no Orbax.

    checkpoints/00000200/                a step, as Orbax lays it out: params/ opt/ [ema/] cursor/ meta/
    checkpoints/00000200.orbax-...tmp    a save that did not finish
    checkpoints/00000100.retired         an old step on its way out
    checkpoints/quarantine/00000200-1/   a step that turned out bad, with why.txt
    checkpoints/lineage-0/00000200/      a step of a lineage that the run has left

A name means a whole step: it appears by one rename after everything is written, and goes by one rename before anything
is deleted.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from jaxllm.checkpoint.manifest import Manifest, broken_seal, decode_manifest
from jaxllm.core.config import Json
from jaxllm.core.errors import CheckpointError, ConfigError
from jaxllm.core.files import fsync_dir

ARRAY_ITEMS = ("params", "opt", "ema")
JSON_ITEMS = ("cursor", "meta")
QUARANTINE = "quarantine"
RETIRED = ".retired"

_DIGITS = 8  # other tools must be told the same length: ocp.CheckpointManagerOptions(step_format_fixed_length=8)
_LINEAGE = re.compile(r"lineage-(\d+)")
_STEP = re.compile(rf"\d{{{_DIGITS},}}")
UNFINISHED = ".orbax-checkpoint-tmp"
_ARRAY_FILES = ("_METADATA", "manifest.ocdbt")  # the tree, and the root of the data
_JSON_FILE = "metadata"  # Orbax's name for the one file of a JSON item


class DamagedCheckpointError(CheckpointError):
    """The files of one step are not what was saved. An older step may be fine."""

    def __init__(self, folder: Path, step: int, reason: str) -> None:
        super().__init__(f"{folder}: checkpoint {step} is damaged: {reason}")
        self.step, self.reason = step, reason


def step_folder(folder: Path, step: int) -> Path:
    """Where a step lies."""
    return folder / f"{step:0{_DIGITS}d}"


def list_steps(folder: Path) -> list[int]:
    """The steps that have a folder, ascending. Whether each is whole is another question."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())


def missing_file(folder: Path, step: int, items: Collection[str]) -> str | None:
    """The first thing missing in `items` at a look at the file names, as 'item: what'; None if nothing is."""
    place = step_folder(folder, step)
    for item in items:
        files = (_JSON_FILE,) if item in JSON_ITEMS else _ARRAY_FILES
        if not (place / item).is_dir():
            return f"{item}: the item is missing"
        for name in files:
            if not (place / item / name).is_file():
                return f"{item}: {name} is missing"
            if (place / item / name).stat().st_size == 0:
                return f"{item}: {name} is empty"
    return None


def is_whole(folder: Path, step: int) -> bool:
    """Whether nothing is missing at first sight: what every step has, and the items that its manifest names."""
    try:
        manifest, _ = read_meta(folder, step)
    except CheckpointError:
        return False
    return missing_file(folder, step, sorted(manifest.items)) is None


def read_meta(folder: Path, step: int) -> tuple[Manifest, dict[str, Json]]:
    """(manifest, cursor) of a step.

    DamagedCheckpointError if they are not what was saved; CheckpointError if there is no such step, or its schema is
    unknown to this jaxllm.
    """
    if not step_folder(folder, step).is_dir():
        there = ", ".join(map(str, list_steps(folder))) or "none"
        raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are: {there}")
    missing = missing_file(folder, step, JSON_ITEMS)
    if missing:
        raise DamagedCheckpointError(folder, step, missing)
    cursor, meta = (_read_json(folder, step, item) for item in JSON_ITEMS)
    broken = broken_seal(meta, cursor)
    if broken:
        raise DamagedCheckpointError(folder, step, broken)
    try:
        manifest = decode_manifest(meta["manifest"])
    except ConfigError as err:  # the seal holds, so this was written so: by a newer jaxllm
        raise CheckpointError(f"{folder}: checkpoint {step}: {err}") from None
    if manifest.step != step:
        raise DamagedCheckpointError(folder, step, f"meta: it is the manifest of step {manifest.step}")
    return manifest, cursor


def quarantined(folder: Path) -> list[str]:
    """Names of the steps that were moved aside, `<step>-<n>`."""
    place = folder / QUARANTINE
    return sorted(p.name for p in place.iterdir() if p.is_dir()) if place.is_dir() else []


def move_aside(folder: Path, step: int, why: str) -> Path:
    """Rename a step to quarantine/<step>-<n>, n from 1, and say why beside its files. Returns where it is now."""
    source = step_folder(folder, step)
    if not source.is_dir():
        raise CheckpointError(f"{folder}: no checkpoint of step {step} to move aside")
    (folder / QUARANTINE).mkdir(exist_ok=True)
    number = 1
    while (target := folder / QUARANTINE / f"{source.name}-{number}").exists():
        number += 1
    source.rename(target)
    (target / "why.txt").write_text(why + "\n")
    fsync_dir(folder)
    return target


def abandoned(folder: Path) -> dict[int, Path]:
    """Lineage -> the folder of its checkpoints, for those that the run has left and whose checkpoints were kept."""
    places = folder.iterdir() if folder.is_dir() else ()
    return {int(m[1]): p for p in sorted(places) if (m := _LINEAGE.fullmatch(p.name)) and p.is_dir()}


def place_of(folder: Path, step: int, lineage: int) -> Path | None:
    """The folder, `folder` itself or that of a lineage that was left, in which a step of `lineage` lies; None if it is
    not there (any more). DamagedCheckpointError if it cannot be told."""
    for place in (folder, *(p for number, p in abandoned(folder).items() if number == lineage)):
        if step in list_steps(place) and read_meta(place, step)[0].lineage == lineage:
            return place
    return None


def abandon(folder: Path, owner: Callable[[int], int], keep: bool) -> list[tuple[int, int]]:
    """Take the steps that are not the live lineage's out of the way: to lineage-N/, or away if they are not to be kept.

    owner: step -> the lineage that it belongs to now. Returns the (lineage, step) of what went. Killed in between, it
    may be called again. A step whose manifest cannot be read stays where it is, for the next restore to find.
    """
    gone = []
    for step in list_steps(folder):
        try:
            lineage = read_meta(folder, step)[0].lineage
        except DamagedCheckpointError:
            continue
        if lineage == owner(step):
            continue
        if keep:
            source = step_folder(folder, step)
            target = folder / f"lineage-{lineage}" / source.name
            if target.exists():
                raise CheckpointError(
                    f"{target} exists, so checkpoint {step} of {folder} cannot go there; move it away"
                )
            target.parent.mkdir(exist_ok=True)
            source.rename(target)
            fsync_dir(target.parent)
            fsync_dir(folder)
        else:
            retire(folder, step)
        gone.append((lineage, step))
    return gone


def retire(folder: Path, step: int) -> None:
    """Delete a step: first its name, then its files. A kill in between leaves no half step under a step's name."""
    source = step_folder(folder, step)
    target = source.with_name(source.name + RETIRED)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    shutil.rmtree(target, ignore_errors=True)  # what cannot be deleted now goes at the next start


def sweep(folder: Path) -> list[str]:
    """Delete what killed processes left: unfinished saves and half-deleted steps. Only for the writer of the run."""
    leftovers = [p for p in folder.iterdir() if UNFINISHED in p.name or p.name.endswith(RETIRED)]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return sorted(p.name for p in leftovers)


def unfinished(folder: Path, step: int) -> Iterator[Path]:
    """The folders of unfinished saves of a step."""
    return folder.glob(f"{step_folder(folder, step).name}{UNFINISHED}*")


def sync_tree(folder: Path) -> None:
    """Make all files and names under a folder survive a power cut."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place) / name, "rb") as f:
                os.fsync(f.fileno())
        fsync_dir(place)


def _read_json(folder: Path, step: int, item: str) -> Json:
    path = step_folder(folder, step) / item / _JSON_FILE
    try:
        return json.loads(path.read_bytes())
    except PermissionError as err:
        raise CheckpointError(f"{folder}: checkpoint {step} cannot be read: {err}") from None
    except (OSError, ValueError) as err:
        raise DamagedCheckpointError(folder, step, f"{item}: cannot be read as JSON ({err})") from None
