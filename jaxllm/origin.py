"""Where a run's first parameters come from: its seed, or a checkpoint of another run."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxllm.assembly import Assembly
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.convert.vocabulary import KEPT, TEMPLATE, TOKENIZER, kept_files
from jaxllm.core.config import differences, encode
from jaxllm.core.errors import CheckpointError, RunError
from jaxllm.core.files import make_folder, write_atomic
from jaxllm.models.config import Model, NormalInit
from jaxllm.run import RunConfig
from jaxllm.train.config import Forked, FromRun, Imported, Scratch
from jaxllm.train.state import State
from jaxllm.workspace import open_run

Json = dict[str, Any]


def pin_start(run: RunConfig) -> RunConfig:
    """`run` with the checkpoint that it starts from named by step and digest, as far as it is not yet.

    RunError, CheckpointError: there is no such run or step, or it has no optimizer to keep.
    """
    match run.start:
        case FromRun(digest=None) as start:
            folder = folder_of(run, start)
            open_run(folder)
            reader = CheckpointReader(folder / "checkpoints")
            steps = reader.steps()
            step = start.step if start.step is not None else max(steps, default=None)
            if step is None or step not in steps:
                there = ", ".join(map(str, steps)) or "none"
                raise RunError(f"start: {folder} has no checkpoint {'' if step is None else step}; it has {there}")
            manifest = reader.manifest(step)
            if start.optimizer == "keep" and "opt" not in manifest.items:
                there = " and ".join(sorted(manifest.items))
                raise RunError(
                    f"start: checkpoint {step} of {folder} holds {there} and no optimizer, as imported models do; "
                    f"use start.optimizer=fresh"
                )
            pinned = dataclasses.replace(start, step=step, digest=manifest.state_digest)
            return dataclasses.replace(run, start=pinned)
        case _:
            return run


def first_state(run: RunConfig, parts: Assembly) -> State:
    """The state before the first update, on the mesh of `parts`.

    RunError if the run that it starts from has another model, or its checkpoint is not the one that was pinned.
    """
    match run.start:
        case Scratch():
            return parts.initial_state()
        case FromRun() as start:
            return _continued(run, start, parts)
        case Forked() as start:
            raise RunError(f"{run.name} goes on from checkpoint {start.step} of {start.run}; bring its own copy back")
        case Imported():
            raise RunError(f'{run.name} is an imported model: start={{"kind":"FromRun",...}} trains on it')


def origin(run: RunConfig) -> Json:
    """What the journal says of it; nothing for a run from scratch."""
    match run.start:
        case Scratch() | Imported() | Forked():
            return {}
        case FromRun() as start:
            name = open_run(folder_of(run, start)).name
            return {"origin": {"run": name, "step": start.step, "digest": start.digest, "optimizer": start.optimizer}}


def inherit(run: RunConfig, folder: Path) -> None:
    """Copy what belongs to the tokenizer (chat template, files that came with an imported model) from the run that this
    one starts from into its `folder`, if they have the same tokenizer. What is there already stays."""
    if not isinstance(run.start, FromRun):
        return
    parent = folder_of(run, run.start)
    tokenizers = [place / TOKENIZER for place in (parent, folder)]
    if not all(t.is_file() for t in tokenizers) or len({t.read_bytes() for t in tokenizers}) > 1:
        return
    found = [TEMPLATE, *(f"{KEPT}/{name}" for name in kept_files(parent / KEPT))]
    for name in found:
        if (parent / name).is_file() and not (folder / name).exists():
            make_folder((folder / name).parent)
            write_atomic(folder / name, (parent / name).read_bytes())


def folder_of(run: RunConfig, start: FromRun) -> Path:
    """The folder of the run that `run` starts from."""
    return Path(run.io.root) / start.folder  # an absolute one stays what it is


def _continued(run: RunConfig, start: FromRun, parts: Assembly) -> State:
    folder = folder_of(run, start)
    other = open_run(folder)
    if changes := differences(encode(_plain(other.model)), encode(_plain(run.model))):
        raise RunError(f"start: {folder} trained another model; {'; '.join(changes)}")
    reader = CheckpointReader(folder / "checkpoints")
    if start.step is None or start.step not in reader.steps():
        raise RunError(f"start: {folder} has no checkpoint {start.step}; bring it back")
    found = reader.manifest(start.step)
    if found.state_digest != start.digest:
        raise CheckpointError(
            f"start: checkpoint {start.step} of {folder} is {found.state_digest[:12]}, this run was started from "
            f"{(start.digest or '')[:12]}; bring that one back"
        )
    abstract = parts.abstract_state

    def restored(item: str, tree: Any) -> Any:
        return reader.restore_params(start.step or 0, tree, parts.digest, item).items[item]

    params = restored("params", abstract.params)
    if start.optimizer == "fresh":
        return parts.state_of(params)
    average = restored("ema", abstract.ema) if abstract.ema is not None and "ema" in found.items else None
    return parts.state_of(params, opt=restored("opt", abstract.opt), ema=average)


def _plain(model: Model) -> Model:
    """How it was initialised is no matter."""
    return dataclasses.replace(model, init=NormalInit())
