"""The facts of a release, and what its release.json lists, from what it was made from. No jax."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import assert_never

import jaxllm
from jaxllm.checkpoint.revision import package_sha256
from jaxllm.data.config import Documents, PythonCode, PythonProse, TextFiles
from jaxllm.data.edits import encode_edits
from jaxllm.data.windows import windows_in
from jaxllm.exporting import family_of_run
from jaxllm.ledger.chain import origin
from jaxllm.ledger.fold import story
from jaxllm.ledger.segments import DIGITS, newest_first, segment_paths
from jaxllm.models.count import parameters
from jaxllm.release import layout
from jaxllm.release.environments import environments
from jaxllm.release.facts import Facts, SourceFacts, StoreFacts
from jaxllm.release.licences import Licence
from jaxllm.release.material import Material
from jaxllm.run import identity_hash

# Of the texts that jaxllm itself brings; of any other, only who publishes it can say.
_PYTHON = "PSF-2.0"


def facts_of(m: Material, licence: Licence, files: Sequence[layout.FileEntry]) -> Facts:
    """files: all that is finished."""
    return Facts(
        run=m.run,
        entry=_run(m),
        made_with=made_with(),
        chains=_chains(m),
        lineages=_lineages(m),
        live=m.now.lineages.live,
        checkpoints=_checkpoints(m),
        contents=m.order.extras,
        store=_store(m),
        sources=_sources(m, licence),
        environments=environments(m.stays),
        scores=m.measured.scores(m.steps, None),
        events=dict(sorted(Counter(str(e["event"]) for e in m.events).items())),
        story=tuple(story(m.events)),
        claim=m.now.claim,
        started=m.events[0]["time"],
        ended=m.events[-1]["time"],
        final_loss=_final_loss(m),
        licence=licence.spdx,
        licence_text=licence.text,
        data_licence=licence.data,
        files=tuple(files),
    )


def release_of(facts: Facts, files: Sequence[layout.FileEntry]) -> layout.Release:
    """files: all of them, the cards too."""
    return layout.Release(
        made_with=facts.made_with,
        run=facts.entry,
        licence=facts.licence,
        data_licence=facts.data_licence,
        contents=facts.contents,
        chains=facts.chains,
        lineages=facts.lineages,
        checkpoints=facts.checkpoints,
        files=tuple(sorted(files, key=lambda f: f.path)),
    )


def made_with() -> layout.MadeWith:
    """This program."""
    return layout.MadeWith(jaxllm=jaxllm.__version__, package=package_sha256())


def _run(m: Material) -> layout.RunEntry:
    return layout.RunEntry(
        name=m.run.name,
        identity=identity_hash(m.run),
        model=family_of_run(m.folder),
        parameters=parameters(m.run.model),
        steps=m.steps,
        planned_steps=m.run.steps,
        tokens=m.table.consumed(m.steps) * m.run.data.seq_len,
        finished=m.now.finished is not None,
    )


def _chains(m: Material) -> layout.Chains:
    paths = segment_paths(m.record / "steps")
    newest = next(newest_first(paths), None)
    head = origin(DIGITS) if newest is None else newest.head
    steps = layout.StepsChain(segments=len(paths), head=head)
    return layout.Chains(journal_head=m.events[-1]["hash"], journal_events=len(m.events), steps=steps)


def _lineages(m: Material) -> tuple[layout.LineageEntry, ...]:
    return tuple(
        layout.LineageEntry(
            lineage=b.lineage,
            parent=b.parent,
            step=b.step,
            edits=tuple(layout.EditEntry(**edit) for edit in encode_edits(b.edits)),
        )
        for b in m.now.lineages.branches
    )


def _checkpoints(m: Material) -> tuple[layout.CheckpointEntry, ...]:
    return tuple(
        layout.CheckpointEntry(
            branch=c.branch,
            lineage=c.lineage,
            step=c.step,
            tokens=c.manifest.tokens,
            first=c.first,
            last=c.last,
            parent=None if c.parent is None else c.parent.branch,
            state_digest=c.manifest.state_digest,
            parameters_digest=c.parameters_digest,
            folder=f"{layout.CHECKPOINTS}/{c.branch}",
            items=("hf", "state") if "optimizer" in m.order.extras else ("hf",),
            scores=m.measured.scores(c.step, c.lineage),
        )
        for c in m.chosen
    )


def _store(m: Material) -> StoreFacts:
    store = m.streams.store
    return StoreFacts(
        recipe=store.manifest.recipe.name,
        manifest=store.manifest_sha256,
        tokenizer=store.tokenizer_identity,
        vocab_size=store.vocab_size,
        end_of_text=store.end_of_text,
        deduplicated=store.manifest.recipe.deduplicate,
        bytes=sum(f.size for f in store.files()),
    )


def _sources(m: Material, licence: Licence) -> tuple[SourceFacts, ...]:
    store, data, seen = m.streams.store, m.run.data, _seen(m)
    recipes = {s.name: s.documents for s in store.manifest.recipe.sources}
    return tuple(
        SourceFacts(
            name=s.name,
            made_of=_made_of(recipes[s.name]),
            licence=_licence(recipes[s.name], licence),
            documents=s.train.documents,
            tokens=s.train.tokens,
            bytes=s.train.bytes,
            heldout_documents=s.heldout.documents,
            heldout_tokens=s.heldout.tokens,
            duplicates_left_out=s.duplicates,
            windows=windows_in(s.train.tokens, data.seq_len, data.windows),
            sequences_seen=seen[s.name],
            tokens_seen=seen[s.name] * data.seq_len,
        )
        for s in store.manifest.sources
    )


def _seen(m: Material) -> Counter[str]:
    """Sequences of each source along the live path: what intervals.json counted, and what came after it."""
    seen: Counter[str] = Counter()
    live = {c.branch for c in m.chosen if c.live}
    counted = json.loads((m.release / layout.INTERVALS).read_bytes())["intervals"]
    for source in (s for i in counted if i["branch"] in live for s in i["sources"]):
        seen[source["source"]] += source["sequences"]
    start = max((c.last for c in m.chosen if c.live), default=m.table.consumed(m.now.lineages.origin))
    rest = m.streams.taken(None, start, m.table.consumed(m.steps), lambda *_: None)
    for (name, _), count in rest.items():
        seen[name] += count.sequences
    return seen


def _made_of(documents: Documents) -> str:
    match documents:
        case TextFiles(paths=paths):
            return f"files: {', '.join(paths)}"
        case PythonProse():
            return "docstrings and help texts of the Python standard library"
        case PythonCode():
            return "modules of the Python standard library"
        case _:
            assert_never(documents)


def _licence(documents: Documents, licence: Licence) -> str:
    if licence.data != layout.NOT_STATED:
        return licence.data
    return _PYTHON if isinstance(documents, (PythonProse, PythonCode)) else layout.NOT_STATED


def _final_loss(m: Material) -> float | None:
    newest = m.newest.get(m.now.lineages.owner(m.steps))
    return newest.loss if newest is not None and newest.step == m.steps else None
