"""`jaxllm fork`: a run that goes on from a checkpoint of another one, with amendments that are recorded. No jax."""

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxllm.checkpoint import fingerprint
from jaxllm.checkpoint.layout import place_of, read_meta, step_folder, sync_tree
from jaxllm.checkpoint.manifest import Manifest, seal
from jaxllm.convert.vocabulary import KEPT, TEMPLATE, TOKENIZER
from jaxllm.core.config import differences, encode, override
from jaxllm.core.errors import LedgerError, RunError
from jaxllm.core.files import fsync_dir, make_folder, write_atomic, write_json_atomic
from jaxllm.data.config import Removal
from jaxllm.data.edits import Edit, Edits, encode_edits
from jaxllm.data.removal import Removed, sources_of
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.ledger.commits import commit
from jaxllm.ledger.history import history
from jaxllm.ledger.journal import Journal, read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.run import RunConfig, identity_hash
from jaxllm.train.config import Forked
from jaxllm.train.guard import Seen, lookback, went_back
from jaxllm.workspace import SPECIAL_TOKENS, check_store, no_checkpoint, open_run, open_store, refuse_imported

Json = dict[str, Any]


def fork(
    folder: Path,
    at: int,
    out: Path,
    *,
    overrides: Iterable[str] = (),
    documents: Iterable[str] = (),
    sources: Iterable[str] = (),
    lineage: int | None = None,
) -> Json:
    """Make the run `out` from checkpoint `at` of the run in `folder`, and say what it is. `jaxllm train OUT` goes on.

    overrides: `field=value` texts. documents, sources: not trained on any more in later steps; the order stays.
    RunError: no such checkpoint, `out` exists, or an amendment that does not fit the state. ConfigError, DataError:
    fields, documents or sources that there are not. Nothing is left of it then.
    """
    parent = open_run(folder)
    refuse_imported(parent, folder)
    if out.exists():
        raise RunError(f"{out} exists; name another folder for the fork")
    events = read_journal(folder / "journal.jsonl")
    lineages = Lineages.of(events)
    place = place_of(folder / "checkpoints", at, lineages.owner(at, lineage))
    if place is None:
        raise RunError(f"--at {at}: {no_checkpoint(folder, at, lineages, lineage)}")
    manifest, cursor = read_meta(place, at)
    parent, store = open_store(parent, folder)
    run = _amended(parent, folder, at, out, manifest, store, list(overrides), documents, sources)
    _check_edits(run, lineages.edits(lineage))
    known = (r for r in history(folder, lineage, lineages) if at - lookback(run.guard) < r.step <= at)
    seen = [Seen(r.step, r.loss, r.grad_norm, r.refused) for r in known]
    changes = differences(_comparable(parent), _comparable(run))
    building = out.with_name(out.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    make_folder(building)
    try:
        write_json_atomic(building / "run.json", encode(run))
        _copy_vocabulary(folder, building)
        with Journal(building / "journal.jsonl") as journal:
            identity = identity_hash(run)
            journal.append(
                "fork",
                lineage=0,
                step=at,
                identity=identity,
                fingerprint=manifest.fingerprint.sha256,
                environment=fingerprint.encode(manifest.fingerprint),
                origin={
                    "run": parent.name,
                    "folder": str(folder),
                    "identity": manifest.identity,
                    "lineage": manifest.lineage,
                    "step": at,
                    "digest": manifest.state_digest,
                    "journal_head": events[-1]["hash"],
                    "steps_head": manifest.steps_head,
                },
                changes=changes,
                edits=encode_edits(lineages.edits(lineage)),
                seen=seen,
                went_back=went_back(events),
            )
            own = dataclasses.replace(
                manifest, identity=identity, lineage=0, journal_head=journal.head, steps_head=None
            )
            _copy_checkpoint(place, at, building / "checkpoints", own, cursor)
            commit(journal, own)
        building.rename(out)
        fsync_dir(out.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return {"run": run.name, "folder": str(out), "step": at, "digest": manifest.state_digest, "changes": changes}


def _amended(
    parent: RunConfig,
    folder: Path,
    at: int,
    out: Path,
    manifest: Manifest,
    store: Store,
    overrides: Sequence[str],
    documents: Iterable[str],
    sources: Iterable[str],
) -> RunConfig:
    """The config of the fork. RunError unless the state of the checkpoint fits it."""
    if taken := [text for text in overrides if text.partition("=")[0].split(".")[0] in ("name", "start")]:
        raise RunError(f"{taken[0]}: a fork is named by --out and starts from its parent; leave that out")
    run = override(parent, overrides)
    position = StepTable(parent.data.stages).consumed(at)
    gone = [Removal(source=source, document=None, first=position) for source in sources]
    for document in documents:
        gone += [Removal(source=s, document=document, first=position) for s in sources_of(document, store)]
    Removed(gone, store)  # refuses what the store does not have
    run = dataclasses.replace(
        run,
        name=out.name,
        io=dataclasses.replace(run.io, root=str(out.parent)),
        data=dataclasses.replace(run.data, without=(*run.data.without, *gone)),
        start=Forked(
            run=parent.name, folder=str(folder), lineage=manifest.lineage, step=at, digest=manifest.state_digest
        ),
    )
    check_store(run, store)
    if found := differences(encode(parent.model), encode(run.model)):
        raise RunError(f"a fork goes on with the state it has: {'; '.join(found)}; train another run instead")
    if (parent.optimizer.ema is None) != (run.optimizer.ema is None):
        raise RunError("a fork goes on with the state it has: optimizer.ema cannot come or go")
    if parent.data.manifest != run.data.manifest or parent.data.seq_len != run.data.seq_len:
        raise RunError("a fork goes on with the store and the windows that it has: data.manifest and data.seq_len stay")
    if at >= run.steps:
        raise RunError(f"--at {at}: the run ends at step {run.steps}; lengthen a stage: data.stages.0.steps=...")
    if (found_position := StepTable(run.data.stages).consumed(at)) != position:
        raise RunError(
            f"data.stages: {at} steps would have consumed {found_position} sequences, and {folder} consumed "
            f"{position} by then; change what comes after step {at} only"
        )
    return run


def _check_edits(run: RunConfig, edits: Iterable[Edit]) -> None:
    try:
        Edits(edits, StepTable(run.data.stages))
    except LedgerError as err:
        raise RunError(f"data.stages: what the parent skipped or deferred does not fit these stages; {err}") from None


def _comparable(run: RunConfig) -> Json:
    """What an amendment is about: neither the name, nor where it lies and what it starts from."""
    sections: Json = encode(run)
    return {k: v for k, v in sections.items() if k not in ("name", "io", "start")}


def _copy_vocabulary(folder: Path, building: Path) -> None:
    for name in (TOKENIZER, SPECIAL_TOKENS, TEMPLATE):
        if (folder / name).is_file():
            write_atomic(building / name, (folder / name).read_bytes())
    if (folder / KEPT).is_dir():
        shutil.copytree(folder / KEPT, building / KEPT)


def _copy_checkpoint(place: Path, step: int, checkpoints: Path, own: Manifest, cursor: Json) -> None:
    """The arrays byte for byte, which every restore holds against their digests; the manifest is the fork's own."""
    make_folder(checkpoints)
    target = step_folder(checkpoints, step)
    shutil.copytree(step_folder(place, step), target)
    write_json_atomic(target / "meta" / "metadata", seal(own, cursor))
    sync_tree(target)
    fsync_dir(checkpoints)
