"""`jaxllm export-hf`: a checkpoint of a run as a folder for Hugging Face tools. No jax: it needs no device."""

import json
import re
from pathlib import Path
from typing import Any

from jaxllm import __version__
from jaxllm.checkpoint.layout import list_steps
from jaxllm.checkpoint.manifest import state_digest
from jaxllm.convert.export import export_arrays
from jaxllm.convert.header import DTYPES
from jaxllm.convert.published import chat_template, read_object
from jaxllm.convert.saved import SavedArrays
from jaxllm.convert.shards import SHARD_BYTES, Report
from jaxllm.convert.vocabulary import (
    CONFIG,
    GENERATION,
    KEPT,
    SETTINGS,
    SPECIAL_MAP,
    TEMPLATE,
    TOKENIZER,
    Special,
    Vocabulary,
    kept_files,
    settings,
    special_map,
    special_of,
    without_code,
)
from jaxllm.core.config import suggest
from jaxllm.core.errors import CheckpointError, ConfigError, RunError
from jaxllm.core.files import read_json
from jaxllm.models.families.registry import family_of_model
from jaxllm.models.families.table import Surroundings
from jaxllm.run import RunConfig, identity_hash
from jaxllm.workspace import SPECIAL_TOKENS, open_run

Json = dict[str, Any]
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}


def export_run(
    folder: Path,
    out: Path,
    *,
    step: int | None = None,
    checkpoints: Path | None = None,
    dtype: str = "float32",
    ema: bool = False,
    family: str | None = None,
    rounding: bool = False,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda phase, done, total: None,
) -> Json:
    """Write `out` from a checkpoint of the run in `folder` (the newest, or `step`), and say what was written.

    checkpoints: the folder that it lies in, if that is one of a lineage that the run has left (layout.place_of).
    dtype: a key of header.DTYPES; one that would change a parameter is refused, unless `rounding` is wanted. ema: the
    averaged parameters. family: by name, where a model could be said in several. Errors: a model that no family can say
    (ConfigError), checkpoints that are not there or not what was saved, a folder that is taken. Nothing is left of it.
    """
    run = open_run(folder)
    base = folder / "checkpoints" if checkpoints is None else checkpoints
    saved = SavedArrays(base, _step(base, step), "ema" if ema else "params")
    vocabulary = Vocabulary(folder / TOKENIZER)
    vocabulary.check_size(run.model.vocab_size)
    special = _special(folder)
    around = _surroundings(run, special)
    chosen_family = family_of_model(run.model, around, family)
    said = export_arrays(
        out,
        saved,
        run.model,
        chosen_family,
        around,
        special,
        dtype=dtype,
        exact=not rounding,
        shard_bytes=shard_bytes,
        files=_files(folder, vocabulary, special, run.data.seq_len),
        origin=_origin(run, saved),
        report=report,
    )
    return said | {"out": str(out), "family": chosen_family.name}


def family_of_run(folder: Path) -> str:
    """The name of the family that the model of a run is said in. ConfigError if none can."""
    run = open_run(folder)
    return family_of_model(run.model, _surroundings(run, _special(folder)), None).name


def dtype_name(text: str) -> str:
    """The name of a type of parameters; bf16, fp16 and fp32 are understood. ConfigError for others."""
    name = _SHORT.get(text, text)
    if name not in DTYPES:
        raise ConfigError(f"--dtype {text} is no type of parameters{suggest(text, DTYPES)}")
    return name


def size_of(text: str) -> int:
    """Bytes of '5GB', '500MB', '20000000'. ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text.strip())
    nbytes = 0 if found is None else int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))
    if nbytes < 1:
        raise ConfigError(f"--shard-size {text}: write bytes as 5GB or 500MB")
    return nbytes


def _surroundings(run: RunConfig, special: Special) -> Surroundings:
    return Surroundings(
        length=run.data.seq_len, bos=special.bos, eos=special.eos[0] if special.eos else None, pad=special.pad
    )


def _step(folder: Path, step: int | None) -> int:
    steps = list_steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" {step}"
        raise CheckpointError(f"{folder} has no checkpoint{wanted}; it has {', '.join(map(str, steps)) or 'none'}")
    return steps[-1] if step is None else step


def _special(folder: Path) -> Special:
    """Ids with a meaning: as they came with an imported model; else the token between documents is all there is."""
    if (folder / KEPT / CONFIG).is_file():
        return special_of(read_object(folder / KEPT / CONFIG), str(folder / KEPT / CONFIG))
    if not (folder / SPECIAL_TOKENS).is_file():
        raise RunError(f"{folder} has no {SPECIAL_TOKENS}; bring it back, it says which token ends a document")
    end = int(read_json(folder / SPECIAL_TOKENS)["end_of_text_id"])
    return Special(bos=end, eos=(end,))


def _files(folder: Path, vocabulary: Vocabulary, special: Special, length: int) -> dict[str, bytes]:
    """The tokenizer and what it goes with: what came with an imported model byte for byte, the rest made here."""
    kept = folder / KEPT
    found = {
        TOKENIZER: (folder / TOKENIZER).read_bytes(),
        GENERATION: _text({k: v for k, v in special.json.items() if v is not None}),
        SETTINGS: _text(settings(vocabulary, special, length)),
        SPECIAL_MAP: _text(special_map(vocabulary, special)),
    }
    # The config is written anew, and the template may be another one by now.
    found |= {name: (kept / name).read_bytes() for name in kept_files(kept) if name not in (CONFIG, TEMPLATE)}
    if (kept / SETTINGS).is_file():
        raw = read_object(kept / SETTINGS)
        if without_code(raw) != raw:
            found[SETTINGS] = _text(without_code(raw))
    if (folder / TEMPLATE).is_file() and chat_template(kept) is None:
        found[TEMPLATE] = (folder / TEMPLATE).read_bytes()
    return found


def _origin(run: RunConfig, saved: SavedArrays) -> Json:
    manifest = saved.manifest
    return {
        "run": run.name,
        "step": saved.step,
        "parameters": saved.item,
        "state_digest": manifest.state_digest,
        "parameters_digest": state_digest(manifest.of_items([saved.item]).values()),
        "identity": identity_hash(run),
        "tokenizer": manifest.tokenizer,
        "trained_with": {
            "commit": manifest.source.commit,
            "dirty": manifest.source.dirty,
            "jaxllm": manifest.jaxllm,
        },
        "exported_with": {"jaxllm": __version__},
    }


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
