"""A folder of published parameters, checked to the last name before anything is read or written."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.convert.config_json import length_of
from jaxllm.convert.header import Array, Entry
from jaxllm.convert.shards import Report, open_shards, widened
from jaxllm.convert.tensors import Tensor, count_of, tensors_of
from jaxllm.convert.vocabulary import CONFIG, GENERATION, SETTINGS, Special, special_of
from jaxllm.core.errors import ConfigError, DataError
from jaxllm.models.config import Model
from jaxllm.models.count import shapes
from jaxllm.models.families.registry import model_of_config
from jaxllm.models.families.table import Family

_MANY = 10_000  # tensors that a folder may lack and still hear which


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a folder holds. architecture: as its config.json says. length: positions it is made for. template: the
    chat template that its tokenizer_config.json holds. copies: tensors that repeat another one (the head of a tied
    model), by name."""

    folder: Path
    config: dict[str, Any]
    architecture: str
    family: Family
    model: Model
    length: int
    special: Special
    template: str | None
    tensors: tuple[Tensor, ...]
    entries: Mapping[str, Entry]
    copies: Mapping[str, str]

    def arrays(self, report: Report = lambda phase, done, total: None) -> Iterator[tuple[str, Array]]:
        """(path, float32 array) of every array of the model. Tensors are read one by one; in memory are the arrays that
        share a tensor. DataError for a copy that is not one."""
        expected = shapes(self.model)
        groups: dict[tuple[str, ...], list[Tensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(tuple(p.path for p in tensor.parts), []).append(tensor)
        done, total = 0, sum(t.size for t in self.tensors)
        for paths, tensors in groups.items():
            arrays = {path: np.empty(expected[path], np.float32) for path in paths}
            for tensor in tensors:
                report("reading tensors", done, total)
                values = self.entries[tensor.name].read()
                for copy in (c for c, name in self.copies.items() if name == tensor.name):
                    if self.entries[copy].read().tobytes() != values.tobytes():
                        raise DataError(
                            f"{self.folder}: {copy} differs from {tensor.name}, though tie_word_embeddings says they "
                            f"are one; set it to false in {CONFIG} if the model was trained so"
                        )
                for part, x in tensor.scatter(widened(values)):
                    arrays[part.path][part.index] = x
                done += tensor.size
            while arrays:  # handed over, not kept: the caller has them elsewhere by the time the next ones are made
                yield arrays.popitem()
        report("reading tensors", total, total)


def open_published(folder: Path) -> Published:
    """Check a folder: its config, then every tensor's name, type and shape, then every file's size.

    ConfigError for an architecture or a field that we do not have, DataError for files that are not what they should
    be. Nothing is executed, and no tensor is read.
    """
    config = read_object(folder / CONFIG)
    where = str(folder / CONFIG)
    family, model = model_of_config(config, where)
    special = special_of(config, where)
    if (folder / GENERATION).is_file():
        special = special_of(read_object(folder / GENERATION), str(folder / GENERATION), special)
    entries = open_shards(folder)
    maps, expected = family.maps(model), shapes(model)
    if (count := count_of(maps, expected)) > len(entries) + _MANY:  # naming them would take a while
        raise DataError(f"{folder}: by {CONFIG} there are {count:,} tensors, and the files hold {len(entries):,}")
    tensors = tensors_of(maps, expected)
    copies = _copies(family, model)
    _check(folder, tensors, entries, family, copies)
    return Published(
        folder=folder,
        config=config,
        architecture=_architecture(config, where) or family.architecture,
        family=family,
        model=model,
        length=length_of(config, where),
        special=special,
        template=chat_template(folder),
        tensors=tensors,
        entries=entries,
        copies={c: t for c, t in copies.items() if c in entries},
    )


def _architecture(config: dict[str, Any], where: str) -> str | None:
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"{where}: architectures={named!r} is no list of names")
    return named[0] if named else None


def chat_template(folder: Path) -> str | None:
    """The chat template that a tokenizer_config.json holds inside, None if there is none."""
    found = read_object(folder / SETTINGS).get("chat_template") if (folder / SETTINGS).is_file() else None
    return found if isinstance(found, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. DataError names the file."""
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing; name a folder that holds a model") from None
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path} is not JSON ({err}); download it again") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path} is not a JSON object; download it again")
    return raw


def _check(
    folder: Path, tensors: tuple[Tensor, ...], entries: Mapping[str, Entry], family: Family, copies: Mapping[str, str]
) -> None:
    wanted = {t.name: t for t in tensors}
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise DataError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(wanted)} tensors are)")
    for name, tensor in wanted.items():
        if entries[name].shape != tensor.shape:
            raise DataError(
                f"{folder}: {name} has shape {list(entries[name].shape)}, by {CONFIG} it has {list(tensor.shape)}"
            )
        entries[name].check_type()
    odd = sorted(n for n in entries if n not in wanted and n not in copies)
    odd = [n for n in odd if not any(re.fullmatch(pattern, n) for pattern in family.buffers)]
    if odd:
        raise DataError(
            f"{folder}: {odd[0]} {list(entries[odd[0]].shape)} has no place in this model ({len(odd)} such tensors); "
            f"is {CONFIG} the one of these files?"
        )


def _copies(family: Family, model: Model) -> dict[str, str]:
    """Of a tied model, the name that its head would have -> the tensor that it repeats where files hold both."""
    if not model.tied_embeddings:
        return {}
    names = {m.ours[0]: m.theirs for m in family.maps(replace(model, tied_embeddings=False)) if len(m.ours) == 1}
    return {names["head.kernel"]: names["embed.table"]}
