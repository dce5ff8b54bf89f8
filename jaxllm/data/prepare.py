"""From text to a token store: read, select, train a tokenizer, tokenize, write.

The store is the same to the byte for any number of workers and after any number of kills: what is in it follows from
the recipe, the inputs and the library versions alone. Work goes on where it stopped, and the store appears under its
name when it is complete. While it is built, the disk holds a compressed copy of the text and the tokens twice.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from jaxllm.core.config import encode, fingerprint
from jaxllm.core.errors import ConfigError, DataError
from jaxllm.core.files import sha256_file
from jaxllm.data import building
from jaxllm.data.config import DataRecipe, TextFiles, TokenizerFile
from jaxllm.data.inputs import list_inputs, unit_size
from jaxllm.data.manifest import MANIFEST, SCHEMA, versions
from jaxllm.data.phases import Preparation, build
from jaxllm.data.store import Store, describe
from jaxllm.data.tokenizer import check_file
from jaxllm.data.work import Progress, silent, usable_cores

__all__ = ["SHARD_TOKENS", "PrepareReport", "cached_store", "describe", "prepare"]

SHARD_TOKENS = 1 << 29  # a file of 1 GiB at two bytes each


@dataclass(frozen=True)
class PrepareReport:
    """What came of a preparation, over both splits of all sources; `reused` if the store was there already."""

    path: Path
    manifest_sha256: str
    documents: int
    tokens: int
    bytes: int
    heldout_documents: int
    duplicates: int
    empty: int
    bad: int
    seconds: float
    reused: bool

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def prepare(
    recipe: DataRecipe,
    out: str | Path,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    *,
    shard_tokens: int = SHARD_TOKENS,
    unit_bytes: int | None = None,
    on_stale: building.OnStale = "refuse",
    wait: bool = False,
) -> PrepareReport:
    """Build the store of a recipe at `out`, or go on with a build that was interrupted.

    `workers` processes (all cores if None). With `skip_bad`, bad input is counted and listed in the manifest instead of
    being an error. A store that is there already is kept if it is this one. An interrupted build with another plan is
    refused, or thrown away with on_stale='discard'; one that another process is at is refused, or waited for.

    DataError names file and line of bad input, an unusable tokenizer, or what is in the way at `out`.
    """
    began = time.monotonic()
    out, tell = Path(os.path.abspath(out)), progress or silent
    if shard_tokens < 1 or (unit_bytes is not None and unit_bytes < 1) or (workers is not None and workers < 1):
        raise ConfigError(f"shard_tokens={shard_tokens}, unit_bytes={unit_bytes}, workers={workers} are at least 1")
    _check_tokenizer(recipe)
    listed = list_inputs(recipe)
    unit_bytes = unit_bytes or unit_size(listed)
    plan = building.plan_of(recipe, listed, shard_tokens=shard_tokens, unit_bytes=unit_bytes, skip_bad=skip_bad)
    store = building.existing(out, plan, listed)
    if store is not None and not building.building_folder(out).exists():
        return _report(store, began, reused=True)
    with building.locked(out, tell, wait=wait) as folder:
        store = building.existing(out, plan, listed)  # another process may have made it meanwhile
        if store is not None:
            building.discard(folder, out)
            return _report(store, began, reused=True)
        job = Preparation(
            recipe=recipe,
            listed=listed,
            work=building.begin(folder, plan, on_stale),
            store=folder / "store",
            unit_bytes=unit_bytes,
            shard_tokens=shard_tokens,
            skip_bad=skip_bad,
            workers=workers or usable_cores(),
            progress=tell,
        )
        try:
            building.publish(folder, out, [f.name for f in build(job).files] + [MANIFEST])
        except OSError as err:
            raise DataError(f"{folder}: {err}; make room or mend it, then run it again to go on") from err
    return _report(Store.open(out), began, reused=False)


def cached_store(
    recipe: DataRecipe,
    cache_root: str | Path,
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    skip_bad: bool = False,
) -> Path:
    """The folder of a recipe's store in a cache, built first if it is not there.

    It is named `<recipe.name>-<12 hex>` after the recipe, the schema of stores and the inputs: their names, sizes and
    sha256, or time of change instead of sha256 above 256 MiB; for the user's own Python also its version. A build that
    another process is at is waited for, one that was interrupted under other library versions begun anew.
    """
    listed = list_inputs(recipe)
    contents: dict[str, object] = {
        "schema": SCHEMA,
        "recipe": encode(recipe),
        "inputs": [i.listed() for i in listed],
    }
    if isinstance(recipe.tokenizer, TokenizerFile):
        _check_tokenizer(recipe)
        contents["tokenizer"] = sha256_file(recipe.tokenizer.path)
    if any(not isinstance(s.documents, TextFiles) for s in recipe.sources):
        contents["python"] = versions().python
    path = Path(cache_root) / f"{recipe.name}-{fingerprint(contents)[:12]}"
    if not (path / MANIFEST).is_file():
        prepare(recipe, path, workers, skip_bad, progress, on_stale="discard", wait=True)
    return path


def _check_tokenizer(recipe: DataRecipe) -> None:
    if isinstance(recipe.tokenizer, TokenizerFile):
        check_file(recipe.tokenizer)
    elif recipe.tokenizer.vocab_size <= 256:
        raise DataError(
            f"tokenizer.vocab_size={recipe.tokenizer.vocab_size} does not hold 256 bytes and the end-of-text token; "
            f"use 257 or more"
        )


def _report(store: Store, began: float, *, reused: bool) -> PrepareReport:
    sources = store.manifest.sources
    splits = [x for s in sources for x in (s.train, s.heldout)]
    return PrepareReport(
        path=store.path,
        manifest_sha256=store.manifest_sha256,
        documents=sum(x.documents for x in splits),
        tokens=sum(x.tokens for x in splits),
        bytes=sum(x.bytes for x in splits),
        heldout_documents=sum(s.heldout.documents for s in sources),
        duplicates=sum(s.duplicates for s in sources),
        empty=sum(s.empty for s in sources),
        bad=sum(s.bad for s in sources),
        seconds=time.monotonic() - began,
        reused=reused,
    )
