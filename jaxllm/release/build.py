"""`jaxllm release`: a run as a folder that others can use, check and continue. No jax.

Work goes on where it was killed: what is finished is kept (parts.py), and nothing in a release depends on when, or in
how many attempts, it was built. The record is taken at the moment at which the work begins (snapshot.py).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxllm.checkpoint.disk import readable
from jaxllm.core.config import decode, encode, suggest
from jaxllm.core.errors import ConfigError, JaxllmError
from jaxllm.data.building import building_folder, discard, locked
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.exporting import dtype_name, family_of_run
from jaxllm.ledger.fold import present
from jaxllm.release.assemble import parts_of
from jaxllm.release.cards import cards
from jaxllm.release.gather import facts_of, made_with, release_of
from jaxllm.release.layout import EXTRAS, RELEASE, Release, encode_release, read_release
from jaxllm.release.licences import Licence
from jaxllm.release.material import Material, Order
from jaxllm.release.parts import Part, Report, Workshop, refuse_taken
from jaxllm.release.selection import again, choose, wish_of
from jaxllm.release.snapshot import Moment, events_of, take
from jaxllm.release.spans import Streams
from jaxllm.run import RunConfig, identity_hash
from jaxllm.workspace import open_run, open_store, refuse_imported

Json = dict[str, Any]


def build_release(
    folder: Path,
    out: Path,
    licence: Licence,
    *,
    checkpoints: str = "all",
    extras: Iterable[str] = (),
    dtype: str = "float32",
    rounding: bool = False,
    report: Report = lambda phase, done, total: None,
) -> Release:
    """Make the release `out` of the run in `folder`, or go on with it, and say what it is.

    checkpoints, extras: as `wish_of` and layout.EXTRAS have them. RunError: no such run or checkpoint, a store that is
    not the run's, `out` exists. CheckpointError: a checkpoint is damaged, or the disk too small. ConfigError: what was
    asked for.
    """
    order = Order(extras_of(extras), dtype_name(dtype), rounding)
    wish = wish_of(checkpoints)
    run = open_run(folder)
    refuse_imported(run, folder)
    if (published := _published(out)) is not None:
        return published
    refuse_taken(out)
    run, store = open_store(run, folder)
    family_of_run(folder)  # whether its weights can be exported at all, before any work
    arguments: Json = {
        "run": run.name,
        "identity": identity_hash(run),
        "checkpoints": wish.text,
        "extras": list(order.extras),
        "dtype": order.dtype,
        "rounding": order.rounding,
        "licence": licence.spdx,
        "licence_text": licence.text,
        "data_licence": licence.data,
        "made_with": encode(made_with()),
    }

    def survey() -> Json:
        moment = take(folder)
        now = present(events_of(folder, moment.journal))
        chosen = choose(folder, now, StepTable(run.data.stages), wish, "abandoned" in order.extras)
        return {"moment": encode(moment), "chosen": [[c.lineage, c.step] for c in chosen]}

    with locked(out, report, wait=False) as building:
        workshop = Workshop(out, building)
        try:
            found = workshop.begin(arguments, survey)
        except JaxllmError:
            if not workshop.has_begun:
                discard(building, out)
            raise
        material = _material(run, folder, store, order, workshop.release, found)
        files = workshop.make_all(list(parts_of(material, report)), report)
        facts = facts_of(material, licence, files)
        texts = cards(facts)
        files += workshop.make(Part("cards", tuple(texts), lambda: _write(workshop.release, texts)))
        release = release_of(facts, files)
        workshop.publish(files, encode_release(release), RELEASE)
    return release


def extras_of(names: Iterable[str]) -> tuple[str, ...]:
    """What --with asks for, in the order of layout.EXTRAS. ConfigError names one that there is not."""
    wanted = set(names)
    for name in sorted(wanted):
        if name not in EXTRAS:
            raise ConfigError(f"--with {name}: there is nothing of this name" + suggest(name, EXTRAS))
    return tuple(name for name in EXTRAS if name in wanted)


def lines(out: Path, release: Release) -> list[str]:
    """For people."""
    run, chains = release.run, release.chains
    state = "finished" if run.finished else f"of {run.planned_steps:,}, not finished"
    size = sum(f.bytes for f in release.files)
    said = [
        f"{out}: {run.name}, {run.parameters:,} parameters, {run.steps:,} steps ({state}), {run.tokens:,} tokens",
        f"  {len(release.files):,} files, {readable(size)}; the last of {chains.journal_events} events is "
        f"{chains.journal_head[:12]}",
    ]
    for c in release.checkpoints:
        items = " and ".join("Hugging Face" if i == "hf" else "training state" for i in c.items)
        said.append(f"  {c.branch}: {items}; sequences {c.first:,} to {c.last:,}; state {c.state_digest[:12]}")
    said.append(f"  licence of the weights {release.licence}, of the data {release.data_licence}")
    return [*said, f"check it: jaxllm verify {out}"]


def _material(run: RunConfig, folder: Path, store: Store, order: Order, release: Path, found: Json) -> Material:
    moment = decode(Moment, found["moment"], "plan.json: moment")
    events = events_of(folder, moment.journal)
    now = present(events)
    chosen = again(folder, now, StepTable(run.data.stages), {(a, b) for a, b in found["chosen"]})
    return Material(run, folder, release, moment, events, chosen, Streams(run, store, now.lineages), order)


def _published(out: Path) -> Release | None:
    """The release, if a builder was killed after it had given it its name and before it had put its tools away."""
    building = building_folder(out)
    if not (out / RELEASE).is_file() or not building.is_dir() or (building / "release").exists():
        return None
    with locked(out, lambda *_: None, wait=False) as held:
        discard(held, out)
    return read_release(out)


def _write(folder: Path, texts: Mapping[str, bytes]) -> None:
    for name, content in texts.items():
        (folder / name).write_bytes(content)
