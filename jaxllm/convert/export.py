"""A checkpoint as a folder that Hugging Face tools open: parameters streamed, config, tokenizer, where it is from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.checkpoint import disk
from jaxllm.convert.config_json import write_config
from jaxllm.convert.folders import appearing_folder
from jaxllm.convert.header import DTYPES
from jaxllm.convert.saved import SavedArrays
from jaxllm.convert.shards import Out, Report, write_shards
from jaxllm.convert.tensors import tensors_of
from jaxllm.convert.vocabulary import CONFIG, Special
from jaxllm.core.errors import CheckpointError
from jaxllm.core.files import make_folder, write_json_atomic
from jaxllm.models.config import Model
from jaxllm.models.count import shapes
from jaxllm.models.families.table import Family, Surroundings

ORIGIN = "jaxllm.json"  # in an export: which run, step and state it is
_CARRIED = Path(__file__).parent / "carried"

Json = dict[str, Any]


def export_arrays(
    out: Path,
    saved: SavedArrays,
    model: Model,
    family: Family,
    around: Surroundings,
    special: Special,
    *,
    dtype: str,
    exact: bool,
    shard_bytes: int,
    files: Mapping[str, bytes],
    origin: Json,
    report: Report,
) -> Json:
    """Write the folder `out` and return what its jaxllm.json says: `origin`, dtype and sha256 of the parameters.

    files: what goes beside them, by name. The folder gets its name after every array was held against its digest.
    DataError: `out` is taken, or a number that `dtype` cannot say (exact: that it would round). CheckpointError: the
    files of the checkpoint are not what was saved, or hold another model, or the disk is too small.
    """
    expected = shapes(model)
    if odd := sorted(p for p in expected.keys() | saved.shapes.keys() if expected.get(p) != saved.shapes.get(p)):
        raise CheckpointError(
            f"{saved.folder}: checkpoint {saved.step}: {odd[0]} has shape {saved.shapes.get(odd[0])}, the run's model "
            f"{expected.get(odd[0])}"
        )
    tensors = list(tensors_of(family.maps(model), expected))
    if not saved.by_layer:
        tensors.sort(key=lambda t: t.parts[0].path)  # stable: layers and experts stay in order
    disk.require_at(out, sum(t.size for t in tensors) * DTYPES[dtype][1].itemsize)
    with appearing_folder(out) as place:
        hashes = write_shards(
            place,
            [Out(t.name, t.shape, lambda t=t: t.gather(saved.read)) for t in tensors],  # type: ignore[misc]
            dtype,
            exact=exact,
            shard_bytes=shard_bytes,
            report=report,
        )
        saved.check()
        write_json_atomic(place / CONFIG, write_config(family, model, around, special, dtype))
        for name, content in files.items():
            make_folder((place / name).parent)
            (place / name).write_bytes(content)
        for name in family.carries:
            (place / name).write_bytes((_CARRIED / name).read_bytes())
        said = origin | {"dtype": dtype, "tensors": len(tensors), "sha256": hashes}
        write_json_atomic(place / ORIGIN, said)
    return said
