"""From what a person names to a run on disk: config, run folder, token store. No jax."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from jaxllm.checkpoint.layout import abandoned, list_steps, place_of
from jaxllm.core.config import canonical, encode, override, suggest
from jaxllm.core.errors import ConfigError, DataError, RunError
from jaxllm.core.files import read_json, sha256_file, write_json_atomic
from jaxllm.core.load import call_config, saved_json
from jaxllm.data.config import DataRecipe, NoStore, StoreAt
from jaxllm.data.manifest import MANIFEST
from jaxllm.data.prepare import cached_store
from jaxllm.data.store import Store
from jaxllm.ledger.fold import present
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.requests import waiting
from jaxllm.run import RunConfig, decode_run, identity_changes, run_folder
from jaxllm.train.config import FromRun, Imported

Progress = Callable[[str, int, int], None]
SPECIAL_TOKENS = "special_tokens.json"  # beside tokenizer.json in a run folder: which ids mean something
_LEVELS_ABOVE = 3  # runs/NAME lies two below the folder that a run was started in


def open_config(target: str, overrides: Iterable[str] = ()) -> tuple[RunConfig, Path]:
    """(config, run folder) for `path.py:function`, a run.json or a run folder, with `field=value` texts applied.

    A run that is named by its folder or its run.json stays in that folder, wherever it was copied to, unless `name` or
    `io.root` is overridden: that makes another run of it.
    """
    saved, overrides = saved_json(target), list(overrides)
    if saved is not None:
        run = decode_run(saved[0])
        moved = override(run, overrides)
        if (run.name, run.io.root) == (moved.name, moved.io.root):
            return moved, saved[1]
    else:
        run = call_config(target)
        if not isinstance(run, RunConfig):
            raise ConfigError(f"{target} returns a {type(run).__name__}, not a RunConfig")
        moved = override(run, overrides)
    if "://" in moved.io.root:
        raise ConfigError(
            f"io.root={moved.io.root!r}: runs live on a file system; mount the bucket and name its folder"
        )
    return moved, Path(run_folder(moved))


def open_run(folder: str | Path) -> RunConfig:
    """The config of a run that has started. RunError if there is none."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise RunError(f"{folder} is no run folder: it has no run.json")
    return decode_run(read_json(path))


def claim_config(run: RunConfig, folder: Path) -> RunConfig:
    """Hold `run` against the run.json in its folder and return the config to run with.

    Values that a run pins when it starts (the data manifest, the checkpoint that it starts from) are taken from the
    saved one where `run` leaves them open.
    RunError names every identity field that differs. Placement may change and is taken from `run`.
    """
    if not (folder / "run.json").is_file():
        return run
    old = open_run(folder)
    if run.data.manifest is None:
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, manifest=old.data.manifest))
    match run.start, old.start:
        case FromRun(digest=None, step=step, optimizer=optimizer), FromRun() as pinned if (
            optimizer == pinned.optimizer and step in (None, pinned.step)
        ):
            start = dataclasses.replace(run.start, step=pinned.step, digest=pinned.digest)
            run = dataclasses.replace(run, start=start)
    changes = identity_changes(old, run)
    if changes:
        raise RunError(
            f"{folder}: this run was started with another identity; {'; '.join(changes)}. "
            f"Start it under another name (name=NEW), or undo the change"
        )
    return run


def save_config(run: RunConfig, folder: Path) -> None:
    """Write run.json, if it is not there with this content."""
    path = folder / "run.json"
    if not path.is_file() or canonical(read_json(path)) != canonical(encode(run)):
        write_json_atomic(path, encode(run))


def open_store(run: RunConfig, folder: Path, progress: Progress | None = None) -> tuple[RunConfig, Store]:
    """The token store of a run, built from its recipe the first time; the config comes back with the manifest pinned.

    A pinned store is never prepared again in silence: RunError says where it was looked for. A relative place is tried
    from the working directory and from above the run's `folder`, so that a run can be read from anywhere.
    """
    refuse_imported(run, folder)
    pinned = run.data.manifest
    if pinned is None:
        path = _store_path(run, progress)
        store = Store.open(path)
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, manifest=store.manifest_sha256))
        return run, store
    for path in _candidates(run, folder):
        if sha256_file(path / MANIFEST) == pinned:
            return run, Store.open(path, pinned)
    raise RunError(
        f"no store with manifest {pinned[:12]} (pinned by the run) in {_where(run)}; bring that store back, or start "
        f"another run: name=NEW data.manifest=null"
    )


def store_at_hand(run: RunConfig, folder: Path) -> tuple[Store | None, str | None]:
    """The token store of a run if it is here, else why not. Nothing is prepared for it."""
    if isinstance(run.data.store, NoStore):
        return None, "the run has no data of its own"
    if run.data.manifest is None:
        return None, "the run has not pinned its token store yet"
    try:
        return open_store(run, folder)[1], None
    except (RunError, DataError) as err:
        return None, str(err)


def refuse_imported(run: RunConfig, folder: Path) -> None:
    """RunError for an imported model: it has no data, and nothing to train on."""
    if isinstance(run.start, Imported):
        raise RunError(
            f"{folder} is an imported model ({run.start.architecture}), which has no data and is not trained itself; "
            f"train a config of its own with this model, data, and start=FromRun(folder={str(folder)!r})"
        )


def no_checkpoint(folder: Path, step: int, lineages: Lineages, lineage: int | None) -> str:
    """What to say where a lineage has no checkpoint of a step: which ones it has."""
    base = folder / "checkpoints"
    known = {s for place in (base, *abandoned(base).values()) for s in list_steps(place)}
    there = {s for s in known if place_of(base, s, lineages.owner(s, lineage))}
    there |= {0} if lineages.origin == 0 else set()
    return f"{folder} has no checkpoint {step} of that lineage; it has {', '.join(map(str, sorted(there)))}"


def check_store(run: RunConfig, store: Store) -> None:
    """ConfigError unless the store has what the config asks of it."""
    if store.vocab_size > run.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={run.model.vocab_size} is smaller than the {store.vocab_size} tokens of the store's "
            f"tokenizer; use model.vocab_size={store.vocab_size} or more"
        )
    for i, stage in enumerate(run.data.stages):
        for share in stage.mixture:
            if share.source not in store.sources:
                raise ConfigError(
                    f"data.stages.{i}.mixture names source {share.source!r}, which the store does not have"
                    + suggest(share.source, store.sources)
                )


def already_finished(run: RunConfig, folder: Path) -> str | None:
    """What to say of a run that is finished and of which nothing is asked, None of any other. Changes nothing.

    RunError if what is finished there is a run of another identity.
    """
    if not (folder / "journal.jsonl").is_file():
        return None
    events = read_journal(folder / "journal.jsonl")
    now = present(events)
    if now.finished is None or waiting(folder):
        return None
    claim_config(run, folder)
    return f"{folder} is finished: {now.finished.step} steps, state digest {now.finished.digest}; nothing to do"


def _store_path(run: RunConfig, progress: Progress | None) -> Path:
    match run.data.store:
        case StoreAt(path=path):
            return Path(path)
        case DataRecipe() as recipe:
            return cached_store(recipe, Path(run.io.data_cache), workers=run.io.workers, progress=progress)
        case NoStore():
            raise AssertionError("refused before")


def _candidates(run: RunConfig, folder: Path) -> list[Path]:
    found: list[Path] = []
    for base in (Path(), *folder.absolute().parents[:_LEVELS_ABOVE]):
        match run.data.store:
            case StoreAt(path=path):
                found.append(base / path)
            case DataRecipe(name=name):
                found += sorted((base / run.io.data_cache).glob(f"{name}-*"))
            case NoStore():
                pass
    return [f for f in found if (f / MANIFEST).is_file()]


def _where(run: RunConfig) -> str:
    match run.data.store:
        case StoreAt(path=path):
            return path
        case DataRecipe(name=name):
            return f"{run.io.data_cache}/{name}-*"
        case NoStore():
            return "no place"
