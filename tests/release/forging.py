"""What a careful forger does to a run: records and checkpoints are changed, and every seal over them made again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.checkpoint.layout import read_meta, step_folder
from jaxllm.checkpoint.manifest import ArrayRecord, decode_manifest, seal, state_digest
from jaxllm.core.config import encode
from jaxllm.core.mixing import array_lanes, hex_lanes
from jaxllm.ledger.chain import forge, origin
from jaxllm.ledger.journal import DIGITS as JOURNAL_DIGITS

Fields = dict[str, Any]


def reforged(path: Path, digits: int, change: Callable[[Fields], Fields | None]) -> None:
    """Rewrite a chain so that it holds; None leaves a line out."""
    head, written = origin(digits), b""
    for line in path.read_bytes().splitlines():
        fields = change({k: v for k, v in json.loads(line).items() if k not in ("prev", "hash")})
        if fields is not None:
            made, head = forge(fields, head, digits)
            written += made
    path.write_bytes(written)


def of_step(step: int, **new: Any) -> Callable[[Fields], Fields]:
    """The change of one step's record."""
    return lambda fields: {**fields, **new} if fields.get("step") == step else fields


def steps_file(folder: Path) -> Path:
    """The records of a run that is shorter than a segment."""
    return folder / "steps" / "000000.jsonl"


def reseal(path: Path, **changes: Any) -> str:
    """Change fields of a checkpoint's manifest, `meta/metadata` at `path`; the state digest that it has now."""
    raw = json.loads(path.read_text())["manifest"] | changes
    arrays = [ArrayRecord(**{**a, "shape": tuple(a["shape"])}) for a in raw["arrays"]]
    raw["state_digest"] = state_digest(arrays)
    cursor = json.loads((path.parents[1] / "cursor" / "metadata").read_text())
    path.write_text(json.dumps(seal(decode_manifest(raw), cursor)))
    return str(raw["state_digest"])


def journal_digest(folder: Path, step: int, digest: str) -> None:
    """Another state digest of a checkpoint in the journal, and all heads that vouch for it."""

    def change(fields: Fields) -> Fields:
        return {**fields, "digest": digest} if (fields["event"], fields.get("step")) == ("checkpoint", step) else fields

    reforged(folder / "journal.jsonl", JOURNAL_DIGITS, change)
    for path in (folder / "checkpoints").glob("*/meta/metadata"):
        reseal(path, journal_head=origin(JOURNAL_DIGITS))


def other_array(folder: Path, step: int, name: str = "params.norm.scale") -> str:
    """Double an array of a checkpoint, with a manifest to match; the state digest that it has now."""
    import tensorstore as ts

    base = folder / "checkpoints"
    item, _, key = name.partition(".")
    place = f"file://{step_folder(base.absolute(), step) / item}/"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": place, "path": f"{key}/"}}
    array = ts.open(spec, open=True).result()
    values = 2 * np.asarray(array.read().result())
    array.write(values).result()
    digest = hex_lanes(array_lanes(values))
    manifest, _ = read_meta(base, step)
    arrays = [encode(a) | ({"digest": digest} if a.name == name else {}) for a in manifest.arrays]
    return reseal(step_folder(base, step) / "meta" / "metadata", arrays=arrays)
