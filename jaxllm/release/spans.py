"""The data of a release: how the stream is ordered, and what each interval between checkpoints took from it. No jax."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.core.config import Json, encode
from jaxllm.core.errors import DataError
from jaxllm.core.files import sha256_file
from jaxllm.data.edits import encode_edits
from jaxllm.data.manifest import MANIFEST, FileEntry
from jaxllm.data.order import exact_weight
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.stream import Stream, stream_of_run
from jaxllm.ledger.lineage import Lineages
from jaxllm.release.selection import Chosen
from jaxllm.run import RunConfig

Report = Callable[[str, int, int], None]
Taken = dict[tuple[str, int], "Count"]  # source, epoch

# What a reader needs to know to compute the order without this program; the arithmetic is in environment/source.tar.gz.
_SCHEME = {
    "stream": "position p -> sample, by the edits of the lineage (data/edits.py); without edits p is its own sample",
    "mixture": "exact counts per block of samples, by a balanced tree of halves rounded half up (data/mixture.py)",
    "permutation": "alternating Feistel network, 8 rounds of splitmix64, walked along its cycles (data/permutation.py)",
    "keys": "BLAKE2b-64 of JSON: [seed, 'block', stage, block] and [seed, 'source', name, epoch, seq_len, windows]",
    "window": "window w of a source begins at token w * seq_len of its train split",
}
_EXAMPLES = 8  # positions whose rows are written out, for whoever computes them anew
_AT_A_TIME = 1 << 16  # positions


@dataclass
class Count:
    """Sequences of one source and epoch within an interval, and the first and last position of one."""

    sequences: int
    first: int
    last: int


@dataclass
class Streams:
    """The effective stream of each lineage of a run; one is computed when it is asked for."""

    run: RunConfig
    store: Store
    lineages: Lineages
    _known: dict[int | None, Stream] = field(default_factory=dict)

    @property
    def table(self) -> StepTable:
        """Steps and positions, which no edit moves."""
        return StepTable(self.run.data.stages)

    def of(self, lineage: int | None) -> Stream:
        """None: the live one."""
        if lineage not in self._known:
            edits = self.lineages.edits(lineage)
            self._known[lineage] = stream_of_run(self.run.data, self.run.seed, self.store, edits)[0]
        return self._known[lineage]

    def taken(self, lineage: int | None, first: int, last: int, report: Report) -> Taken:
        """What positions first..last-1 took, by source and epoch."""
        stream, found = self.of(lineage), dict[tuple[str, int], Count]()
        for start in range(first, last, _AT_A_TIME):
            stop = min(start + _AT_A_TIME, last)
            rows = stream.rows(np.arange(start, stop))
            kinds, index = np.unique(np.stack([rows.source.astype(np.int64), rows.epoch]), axis=1, return_inverse=True)
            for k, (source, epoch) in enumerate(kinds.T.tolist()):
                here = np.flatnonzero(index.reshape(-1) == k) + start
                key = stream.sources[source].name, epoch
                before = found.get(key, Count(0, int(here[0]), 0))
                found[key] = Count(before.sequences + len(here), before.first, int(here[-1]))
            report("intervals", stop - first, last - first)
        return dict(sorted(found.items()))


def order(streams: Streams) -> Json:
    """The specification of the order: everything that it is a function of, and its first rows."""
    run, store, table = streams.run, streams.store, streams.table
    data, stream = run.data, streams.of(None)
    stages = [
        {
            "name": stage.name,
            "first_step": table.stage_start(i),
            "last_step": table.stage_end(i),
            "batch_size": stage.batch_size,
            "first_position": table.consumed(table.stage_start(i) - 1),
            "weights": {s.source: str(exact_weight(s.weight)) for s in sorted(stage.mixture, key=lambda s: s.source)},
        }
        for i, stage in enumerate(data.stages)
    ]
    sources = [
        {
            "name": s.name,
            "windows": s.windows,
            "tokens": store.sources[s.name].tokens,
            "documents": store.sources[s.name].documents,
        }
        for s in stream.sources
    ]
    examples = np.arange(min(_EXAMPLES, table.positions))
    rows = stream.rows(examples)
    return {
        "schema": 1,
        "seed": run.seed,
        "seq_len": data.seq_len,
        "windows": data.windows,
        "attention": data.attention,
        "loss": data.loss,
        "block": data.block,
        "scheme": _SCHEME,
        "store": {"manifest_sha256": store.manifest_sha256, "dtype": store.manifest.dtype},
        "positions": table.positions,
        "stages": stages,
        "sources": sources,
        "lineages": [
            {"lineage": b.lineage, "parent": b.parent, "step": b.step, "edits": encode_edits(b.edits)}
            for b in streams.lineages.branches
        ],
        "without": [encode(r) for r in data.without],
        "examples": [
            {"position": p, "source": stream.sources[k].name, "epoch": e, "window": w}
            for p, k, e, w in zip(
                examples.tolist(), rows.source.tolist(), rows.epoch.tolist(), rows.window.tolist(), strict=True
            )
        ],
    }


def intervals(streams: Streams, chosen: Sequence[Chosen], report: Report) -> Json:
    """What each checkpoint saw since its parent."""
    seq_len = streams.run.data.seq_len
    found: list[dict[str, Any]] = []
    for c in chosen:
        taken = streams.taken(c.lineage, c.first, c.last, report)
        found.append(
            {
                "branch": c.branch,
                "parent": None if c.parent is None else c.parent.branch,
                "lineage": c.lineage,
                "first_step": (streams.lineages.origin if c.parent is None else c.parent.step) + 1,
                "last_step": c.step,
                "first": c.first,
                "last": c.last,
                "sequences": c.last - c.first,
                "tokens": (c.last - c.first) * seq_len,
                "sources": [
                    {
                        "source": source,
                        "epoch": epoch,
                        "sequences": count.sequences,
                        "tokens": count.sequences * seq_len,
                        "first": count.first,
                        "last": count.last,
                    }
                    for (source, epoch), count in taken.items()
                ],
            }
        )
    return {"schema": 1, "seq_len": seq_len, "intervals": found}


def copied(store: Store) -> Iterator[tuple[str, FileEntry]]:
    """What of the store goes into data/, as (path there, entry in the manifest): ledgers and the list of inputs."""
    by_name = {f.name: f for f in store.manifest.files}
    yield store.manifest.inputs_file, by_name[store.manifest.inputs_file]
    for source in store.manifest.sources:
        for split in (source.train, source.heldout):
            for shard in split.shards:
                yield f"ledgers/{shard.documents_file}", by_name[shard.documents_file]


def copy_store(store: Store, out: Path, report: Report) -> None:
    """Manifest and ledgers, byte for byte. DataError names a file that is not what the manifest says."""
    wanted = list(copied(store))
    (out / "ledgers").mkdir(parents=True)
    shutil.copyfile(store.path / MANIFEST, out / MANIFEST)
    if sha256_file(out / MANIFEST) != store.manifest_sha256:
        raise DataError(f"{store.path / MANIFEST} changed while it was read; bring the store of this run back")
    for i, (name, entry) in enumerate(wanted):
        report("document ledgers", i, len(wanted))
        shutil.copyfile(store.path / entry.name, out / name)
        if sha256_file(out / name) != entry.sha256:
            raise DataError(f"{store.path / entry.name} is damaged: prepare or copy the store again")
    report("document ledgers", len(wanted), len(wanted))


def write_json(path: Path, value: Json) -> None:
    """For people and programs; the bytes are a function of the value."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
