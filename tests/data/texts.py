"""Small corpora on disk, recipes over them, and the comparison of stores."""

import json
import random
from pathlib import Path
from typing import Any

from jaxllm.data.config import DataRecipe, SourceRecipe, TextFiles, TokenizerFile, TrainBpe

WORDS = [
    "the",
    "of",
    "and",
    "learning",
    "model",
    "token",
    "gradient",
    "loss",
    "window",
    "straße",
    "数据",
    "order",
    "exact",
    "résumé",
    "run",
    "kill",
    "step",
    "🙂",
]


def sentences(seed: int, count: int, longest: int = 60) -> list[str]:
    """Texts of random words, a few of them long."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.choice([3, 8, 20, longest]))) + f" {seed}.{i}\n" for i in range(count)]


def write_jsonl(path: Path, texts: list[str], **columns: list[Any]) -> Path:
    """A .jsonl with a field `text` and the given ones."""
    rows = [{"text": t} | {k: v[i] for k, v in columns.items()} for i, t in enumerate(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def source(name: str, *paths: Path | str, heldout_per_mille: int = 0, **reading: Any) -> SourceRecipe:
    documents = TextFiles(paths=tuple(str(p) for p in paths), **reading)
    return SourceRecipe(name=name, documents=documents, heldout_per_mille=heldout_per_mille)


def recipe(
    *sources: SourceRecipe, tokenizer: TrainBpe | TokenizerFile | None = None, deduplicate: bool = True
) -> DataRecipe:
    return DataRecipe(
        name="small", sources=sources, tokenizer=tokenizer or TrainBpe(vocab_size=320), deduplicate=deduplicate
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def differing(a: Path, b: Path) -> list[str]:
    """The files in which two stores differ."""
    ours, theirs = contents(a), contents(b)
    return sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
