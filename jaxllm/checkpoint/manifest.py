"""What a checkpoint says about itself: its `meta` item. No jax, so that verify and journal tools start in milliseconds.

The item is sealed: it carries the sha256 of itself and of the cursor, so that a changed bit in either is found. The
arrays are covered by their digests, which are recomputed at every restore.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable
from typing import Any

from jaxllm.checkpoint.fingerprint import Fingerprint
from jaxllm.checkpoint.revision import Revision
from jaxllm.core.config import Json, canonical, config, decode
from jaxllm.core.errors import ConfigError
from jaxllm.core.mixing import combine

SCHEMA = 1
# models/randomness.py: a key per (seed, name), no split order; 2: normal numbers in integers (models/normal.py).
RNG_SCHEME = "by-name-2"


@config
class ArrayRecord:
    """One array of the state, in its canonical logical form.

    name: dotted, the item first: "params.blocks.attention.q". digest: 16 hex digits of core/mixing over bit patterns
    and global indices; it ignores shape and dtype, which is why they stand beside it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str


@config
class Rng:
    """Where randomness comes from. There is no state: every key is a function of the seed and a name."""

    seed: int
    scheme: str = RNG_SCHEME


@config
class Manifest:
    """Everything but the arrays and the cursor.

    step: updates finished. tokens: input positions consumed so far. identity: sha256 of the run's identity sections.
    data_manifest, tokenizer: sha256. state_digest: sha256 over the canonical lines of `arrays`. journal_head: hash of
    the last journal event written before the save, steps_head: of the last line in steps/; None if there is none.
    fingerprint: what the bits depend on.
    """

    schema: int = SCHEMA
    step: int
    lineage: int
    tokens: int
    identity: str
    data_manifest: str
    tokenizer: str
    arrays: tuple[ArrayRecord, ...]
    state_digest: str
    journal_head: str | None
    steps_head: str | None
    fingerprint: Fingerprint
    source: Revision
    jaxllm: str
    rng: Rng

    def __post_init__(self) -> None:
        if self.step < 0 or self.tokens < 0 or self.lineage < 0:
            raise ValueError(f"step={self.step}, tokens={self.tokens}, lineage={self.lineage}: none is negative")
        if len({a.name for a in self.arrays}) != len(self.arrays):
            raise ValueError("two arrays have one name")
        if self.state_digest != state_digest(self.arrays):
            raise ValueError("state_digest is not that of the arrays; use state_digest(arrays)")

    @property
    def digests(self) -> dict[str, str]:
        """Array name -> digest."""
        return {a.name: a.digest for a in self.arrays}

    @property
    def items(self) -> set[str]:
        """The items that hold arrays: 'params', 'opt' and perhaps 'ema'."""
        return {item_of(a.name) for a in self.arrays}

    def of_items(self, items: Collection[str]) -> dict[str, ArrayRecord]:
        """The arrays of some items, by name."""
        return {a.name: a for a in self.arrays if item_of(a.name) in items}


def item_of(name: str) -> str:
    """'params.blocks.attention.q' -> 'params'."""
    return name.partition(".")[0]


def state_digest(arrays: Iterable[ArrayRecord]) -> str:
    """sha256 (hex) over the canonical lines of all arrays: the one number that says what a state is."""
    known = {a.name: a for a in arrays}
    return combine(
        {n: a.digest for n, a in known.items()},
        {n: a.shape for n, a in known.items()},
        {n: a.dtype for n, a in known.items()},
    )


def encode(manifest: Manifest) -> dict[str, Json]:
    """Manifest -> JSON value."""
    return _plain(dataclasses.asdict(manifest))


def decode_manifest(raw: Json, where: str = "meta") -> Manifest:
    """JSON value -> Manifest. ConfigError names the field at fault, or a schema this jaxllm does not know."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is not a JSON object")
    schema = raw.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ConfigError(f"{where}.schema={schema!r}: this jaxllm reads schemas 1 to {SCHEMA}; update jaxllm")
    return decode(Manifest, raw, where)


def sha256_json(raw: Json) -> str:
    """sha256 (hex) of the canonical spelling of a JSON value."""
    return hashlib.sha256(canonical(raw)).hexdigest()


def seal(manifest: Manifest, cursor: Json) -> dict[str, Json]:
    """The `meta` item of a checkpoint whose `cursor` item is `cursor`."""
    body = {"manifest": encode(manifest), "cursor_sha256": sha256_json(cursor)}
    return body | {"sha256": sha256_json(body)}


def broken_seal(meta: Json, cursor: Json) -> str | None:
    """Why a `meta` item and its `cursor` item are not what was written together; None if they are."""
    if not isinstance(meta, dict) or set(meta) != {"manifest", "cursor_sha256", "sha256"}:
        return "meta: not a sealed manifest"
    body = {k: v for k, v in meta.items() if k != "sha256"}
    if sha256_json(body) != meta["sha256"]:
        return "meta: its sha256 does not match its content"
    if sha256_json(cursor) != meta["cursor_sha256"]:
        return "cursor: its sha256 is not the one in meta"
    return None


def _plain(value: Any) -> Json:
    """Tuples as lists, so that a value equals its JSON round trip."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
