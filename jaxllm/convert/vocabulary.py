"""The tokenizer's side of a model folder: which ids mean something, the chat template, files in both directions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.core.config import Json
from jaxllm.core.errors import ConfigError, DataError

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
CONFIG = "config.json"
GENERATION = "generation_config.json"
KEPT = "hf"  # folder in an imported run with the files that came along, byte for byte
_KEPT_FILES = (CONFIG, GENERATION, SETTINGS, SPECIAL_MAP, TEMPLATE, "added_tokens.json")
_TEMPLATES = "additional_chat_templates/*.jinja"

_ROLES = ("bos", "eos", "pad")
_IDS = 1 << 32  # ids of the tokenizers library


@dataclass(frozen=True, kw_only=True)
class Special:
    """Ids with a meaning. eos: all that end a text, the first one is what closes a document."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None

    @property
    def json(self) -> dict[str, Json]:
        """The fields of config.json and generation_config.json; null where there is none, since the library would put
        ids of its own there."""
        eos: Json = None if not self.eos else self.eos[0] if len(self.eos) == 1 else list(self.eos)
        return {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}


def special_of(raw: Mapping[str, Any], where: str, base: Special = Special()) -> Special:
    """The ids in a config.json or generation_config.json, `base` where it does not say. ConfigError for other types."""
    found: dict[str, Any] = {}
    for role in _ROLES:
        name = f"{role}_token_id"
        value = raw.get(name)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(type(i) is int and i < _IDS for i in ids) or (len(ids) > 1 and role != "eos"):
            raise ConfigError(f"{where}: {name}={value!r} is no token id")
        if min(ids) >= 0:  # some write -1 for none
            found[role] = tuple(ids) if role == "eos" else ids[0]
    return Special(bos=found.get("bos", base.bos), eos=found.get("eos", base.eos), pad=found.get("pad", base.pad))


def kept_files(folder: Path) -> tuple[str, ...]:
    """What comes along with a model, of what lies in `folder`; with slashes."""
    more = sorted(p.relative_to(folder).as_posix() for p in folder.glob(_TEMPLATES))
    return tuple(name for name in (*_KEPT_FILES, *more) if (folder / name).is_file())


class Vocabulary:
    """A tokenizer.json, read as what it says."""

    def __init__(self, path: Path) -> None:
        """DataError if it is no tokenizer.json."""
        self.path = path
        try:
            self.raw: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing; save the tokenizer of this model as tokenizer.json "
                f"(save_pretrained of a fast tokenizer), or name one with --tokenizer"
            ) from None
        except (ValueError, RecursionError) as err:
            raise DataError(f"{path} is not JSON ({err}); download it again") from None
        if not isinstance(self.raw, dict) or "model" not in self.raw:
            raise DataError(f"{path} is not a tokenizer.json of the tokenizers library (it has no 'model')")
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as err:  # the library raises plain Exception for whatever its parser does not like
            why = " ".join(str(err).split())[:200]
            raise DataError(f"{path}: not a tokenizer that the tokenizers library can load ({why})") from None
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def text(self, token: int) -> str:
        """How a token is spelled. DataError if there is none with this id."""
        found = self.tokenizer.id_to_token(token)
        if found is None:
            raise DataError(f"{self.path} has no token {token}, which the model's config names")
        return str(found)

    def id(self, text: str) -> int | None:
        """The id of a token."""
        found = self.tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def check_size(self, vocab_size: int) -> None:
        """DataError if the model has no row for one of its tokens."""
        if self.size > vocab_size:
            raise DataError(
                f"{self.path} has ids up to {self.size - 1}, and the model has vocab_size={vocab_size}: "
                f"this is the tokenizer of another model"
            )


def settings(vocabulary: Vocabulary, special: Special, length: int) -> dict[str, Json]:
    """tokenizer_config.json for a tokenizer of which there was none."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_map(vocabulary, special),
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }


def special_map(vocabulary: Vocabulary, special: Special) -> dict[str, Json]:
    """special_tokens_map.json."""
    ids = {"bos": special.bos, "eos": special.eos[0] if special.eos else None, "pad": special.pad}
    return {f"{role}_token": vocabulary.text(i) for role, i in ids.items() if i is not None}


def without_code(raw: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json that names no class of somebody's remote code; the tokenizer.json says it all."""
    if "auto_map" not in raw:
        return raw
    return {k: v for k, v in raw.items() if k != "auto_map"} | {"tokenizer_class": "PreTrainedTokenizerFast"}
