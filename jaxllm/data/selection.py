"""Which documents of the scans enter the store: the first of equal texts, split by content, each with an id of its own.

All decisions follow from the documents in the order of the recipe. Memory: about 40 bytes per document.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxllm.data.config import DataRecipe
from jaxllm.data.document_table import id_key
from jaxllm.data.manifest import BadEntry
from jaxllm.data.scan import LISTED, read_columns, read_counts

DROPPED, TRAIN, HELDOUT = 0, 1, 2


@dataclass(frozen=True)
class Choice:
    """For the documents of one unit: uint8 DROPPED, TRAIN or HELDOUT, and the new ids of those whose id was taken."""

    flags: np.ndarray
    renamed: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Leftovers:
    """What a source left out."""

    duplicates: int
    empty: int
    bad: int
    listed: tuple[BadEntry, ...]


def is_heldout(sha256: bytes, per_mille: int) -> bool:
    """Whether a text is held out: 8 bytes of its hash, modulo 1000, are below `per_mille`. Raising it only adds."""
    return int.from_bytes(sha256[16:24], "little") % 1000 < per_mille


def select(recipe: DataRecipe, scans: Sequence[tuple[int, Path]]) -> tuple[list[Choice], list[Leftovers]]:
    """A choice per scan and the leftovers per source. `scans` are (source, file) in the order of the units."""
    hashes, keys = [], []
    for _, scan in scans:
        table = read_columns(scan, "sha256", "key")
        raw = b"".join(table.column("sha256").to_pylist())
        hashes.append(np.frombuffer(raw, "<u8").reshape(-1, 4)[:, :3].copy())
        keys.append(table.column("key").to_numpy())
    counts = [len(k) for k in keys]
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    words = np.concatenate(hashes) if hashes else np.empty((0, 3), np.uint64)
    source_of = np.repeat(np.array([s for s, _ in scans], np.int64), counts)

    per_mille = np.array([s.heldout_per_mille for s in recipe.sources], np.uint64)
    flags = np.where(words[:, 2] % np.uint64(1000) < per_mille[source_of], HELDOUT, TRAIN).astype(np.uint8)
    if recipe.deduplicate:
        flags[_repeats(words[:, 0], words[:, 1])] = DROPPED

    choices = [Choice(flags[a:b]) for a, b in itertools.pairwise(bounds)]
    all_keys = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    for source in range(len(recipe.sources)):
        mine = np.flatnonzero((source_of == source) & (flags != DROPPED))
        _rename(mine, all_keys[mine], bounds, [scan for _, scan in scans], choices)
    return choices, [_leftovers(i, scans, flags, source_of) for i in range(len(recipe.sources))]


def _repeats(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Indices of all but the first of equal pairs. 128 bits of sha256 stand for the text."""
    order = np.lexsort((second, first))  # stable: equal pairs keep their order
    same = (first[order][1:] == first[order][:-1]) & (second[order][1:] == second[order][:-1])
    return order[1:][same]


def _rename(
    mine: np.ndarray, keys: np.ndarray, bounds: np.ndarray, scans: Sequence[Path], choices: Sequence[Choice]
) -> None:
    """Give `id#2`, `id#3`, ... to the later of the documents of a source that share an id."""
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    later = np.sort(order[1:][ascending[1:] == ascending[:-1]])
    given: set[int] = set()
    counters: dict[str, int] = {}
    opened, ids = -1, []
    for document in mine[later]:
        unit = int(np.searchsorted(bounds, document, "right")) - 1
        if unit != opened:
            opened, ids = unit, read_columns(scans[unit], "id").column("id").to_pylist()
        row = int(document - bounds[unit])
        base = ids[row]
        while True:
            counters[base] = counters.get(base, 1) + 1
            name = f"{base}#{counters[base]}"
            key = id_key(name)
            place = int(np.searchsorted(ascending, np.uint64(key)))
            if key not in given and (place == len(ascending) or int(ascending[place]) != key):
                break
        given.add(key)
        choices[unit].renamed[row] = name


def _leftovers(source: int, scans: Sequence[tuple[int, Path]], flags: np.ndarray, source_of: np.ndarray) -> Leftovers:
    counts = [read_counts(scan) for s, scan in scans if s == source]
    return Leftovers(
        duplicates=int(((source_of == source) & (flags == DROPPED)).sum()),
        empty=sum(c.empty for c in counts),
        bad=sum(c.bad for c in counts),
        listed=tuple(entry for c in counts for entry in c.listed)[:LISTED],
    )
