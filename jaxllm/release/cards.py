"""What people and programs read first of a release: cards, licence, metadata. Written from the record. No jax."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from jaxllm.core.config import essential
from jaxllm.release.croissant import croissant
from jaxllm.release.facts import Facts
from jaxllm.release.layout import CROISSANT, DATA_CARD, LICENCE, MOF, NOT_STATED, README
from jaxllm.release.mof import mof


def cards(facts: Facts) -> dict[str, bytes]:
    """Path in the release -> content."""
    return {
        README: _model_card(facts).encode(),
        DATA_CARD: _data_card(facts).encode(),
        LICENCE: facts.licence_text.encode(),
        CROISSANT: _json(croissant(facts)),
        MOF: _json(mof(facts)),
    }


def _model_card(f: Facts) -> str:
    entry = f.entry
    state = "finished" if entry.finished else f"{entry.steps:,} of {entry.planned_steps:,} steps so far"
    newest = max((c for c in f.checkpoints if not c.branch.startswith("lineage")), key=lambda c: c.step)
    named = f.licence == "Apache-2.0"
    said = [
        "---",
        *(["license: apache-2.0"] if named else ["license: other", f"license_name: {f.licence}"]),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {entry.name}",
        "",
        f"A {entry.model} language model of {entry.parameters:,} parameters, pretrained with jaxllm "
        f"{f.made_with.jaxllm} on {entry.tokens:,} tokens ({state}), with the whole record of its training.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'folder = "checkpoints/{newest.branch}/hf"',
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
        "## Checkpoints",
        "",
        *_table(
            ("branch", "step", "tokens", "sequences since the one before", "holds", "state digest"),
            (
                (
                    c.branch,
                    f"{c.step:,}",
                    f"{c.tokens:,}",
                    f"{c.first:,} to {c.last:,}",
                    ", ".join(c.items),
                    c.state_digest[:12],
                )
                for c in f.checkpoints
            ),
        ),
        "",
        "## Held-out loss",
        "",
        *_scores(f),
        "",
        "## Trained with",
        "",
        *_table(
            ("lineage", "steps", "devices", "mesh", "versions", "source"),
            (
                (
                    str(e.lineage),
                    f"{e.first:,} to {e.last:,}",
                    f"{e.devices} x {e.device_kind}",
                    ", ".join(f"{axis}={size}" for axis, size in e.mesh.items()) or "one device",
                    ", ".join(f"{name} {version}" for name, version in e.versions.items()),
                    (e.commit or "not in git")[:12] + (" with changes" if e.dirty else ""),
                )
                for e in f.environments
            ),
        ),
        "",
        f"Seed {f.run.seed}, identity {entry.identity}. The configuration, without what has its default:",
        "",
        "```json",
        json.dumps(_config(f), indent=1),
        "```",
        "",
        "## What happened",
        "",
        "```",
        *f.story,
        "```",
        "",
        "## Checking it",
        "",
        "    jaxllm verify .",
        "",
        "This shows that the record is whole and consistent, and is about this data and these checkpoints. That the "
        "numbers came out of training on it is shown by executing intervals again, from a checkpoint's `state/`; that "
        "a determined forger trained honestly is shown by neither.",
        "",
        f"Licence of the weights: {f.licence}; of the data: {f.data_licence}.",
    ]
    return "\n".join(said) + "\n"


def _config(f: Facts) -> dict[str, Any]:
    """What makes the run what it is; where it lay is nobody else's."""
    return {name: value for name, value in essential(f.run).items() if name != "io"}


def _scores(f: Facts) -> list[str]:
    if not f.scores:
        return ["None was recorded."]
    rows = (
        (s.source, f"{s.step:,}", _number(s.nats_per_token), _number(s.bits_per_byte), f"{s.tokens:,}")
        for s in f.scores
    )
    return _table(("source", "step", "nats per token", "bits per byte", "labels"), rows)


def _data_card(f: Facts) -> str:
    chunks = ", `data/chunks/` the tokens themselves, in the order in which they were consumed"
    unknown = " Nobody said it here; ask who publishes this." if f.data_licence == NOT_STATED else ""
    said = [
        f"# The data of {f.entry.name}",
        "",
        f"Store `{f.store.recipe}`, manifest sha256 {f.store.manifest}; tokenizer {f.store.tokenizer} of "
        f"{f.store.vocab_size:,} tokens; every document ends with `{f.store.end_of_text}`. Documents with equal text "
        f"{'were left out' if f.store.deduplicated else 'were kept'}.",
        "",
        *_table(
            (
                "source",
                "made of",
                "licence",
                "documents",
                "tokens",
                "held out",
                "duplicates left out",
                "seen",
                "epochs",
            ),
            (
                (
                    s.name,
                    s.made_of,
                    s.licence,
                    f"{s.documents:,}",
                    f"{s.tokens:,}",
                    f"{s.heldout_documents:,} documents",
                    f"{s.duplicates_left_out:,}",
                    f"{s.tokens_seen:,} tokens",
                    f"{s.epochs:.3f}",
                )
                for s in f.sources
            ),
        ),
        "",
        "`data/order.json` says how the stream is ordered, `data/intervals.json` what each checkpoint saw since the "
        f"one before, `data/ledgers/` which documents there are and where they lie{chunks * ('data' in f.contents)}.",
        "",
        f"Licence of the data: {f.data_licence}.{unknown}",
    ]
    return "\n".join(said) + "\n"


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
