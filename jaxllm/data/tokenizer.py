"""Tokenizers: trained here or given as a tokenizer.json, with what makes two of them the same one.

The tokenizers library is imported where it is used: its thread count is read at that moment (work.py), and commands
that only look at a store do without it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.core.config import Json, canonical
from jaxllm.core.errors import DataError
from jaxllm.data.config import TokenizerFile, TrainBpe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Ids 0..255 of a trained vocabulary but for the special token are single bytes, so that no text is ever unknown.
_BYTES = 256
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def train(texts: Iterator[str], config: TrainBpe) -> str:
    """The tokenizer.json of a byte-level BPE (GPT-2's pre-tokenizer) trained on `texts`.

    The same texts in the same order give the same bytes, whatever the number of threads. The vocabulary is smaller than
    asked for if the texts hold fewer pairs that occur twice. DataError if no size could hold every byte.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if config.vocab_size <= _BYTES:
        raise DataError(f"vocab_size={config.vocab_size} is too small for {_BYTES} bytes and {config.end_of_text!r}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[config.end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True)) + "\n"


def check_file(config: TokenizerFile) -> None:
    """DataError unless the file is a tokenizer whose end-of-text token is special."""
    Encoder(Path(config.path), config.end_of_text)


class Encoder:
    """A tokenizer.json at work: texts to token ids, each closed by end-of-text."""

    def __init__(self, path: Path, end_of_text: str) -> None:
        """DataError if the file is no tokenizer or lacks the token. A text that spells a special token is only text."""
        self.raw = read_json_file(path)
        self._tokenizer = _load(path)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()  # a tokenizer.json may carry limits that served another purpose
        self._tokenizer.no_padding()
        self.special = special_tokens(self.raw)
        if end_of_text not in self.special:
            known = ", ".join(repr(t) for t in list(self.special)[:8]) or "none"
            raise DataError(f"{path}: {end_of_text!r} is not a special token of this tokenizer; it has {known}")
        self.end_of_text_id = self.special[end_of_text]
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.token_bytes = _token_bytes(self.raw, vocabulary, set(self.special.values()), self.vocab_size)
        self.identity = identity(self.raw, self.special, end_of_text)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest of u16 and u32 that holds every id, little-endian."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, end-of-text last."""
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*encoding.ids, self.end_of_text_id], self.dtype) for encoding in found]


def identity(raw: Json, special: dict[str, int], end_of_text: str) -> str:
    """sha256 (hex) of the canonical tokenizer.json with its special tokens and the one that closes documents."""
    whole = {"tokenizer": raw, "special": special, "end_of_text": end_of_text}
    return hashlib.sha256(canonical(whole)).hexdigest()


def special_tokens(raw: Json) -> dict[str, int]:
    """content -> id of the special tokens that a tokenizer.json declares, by id."""
    added = [t for t in raw.get("added_tokens") or [] if t.get("special")]
    return {t["content"]: t["id"] for t in sorted(added, key=lambda t: t["id"])}


def read_json_file(path: Path) -> Json:
    """The JSON object in a tokenizer.json. DataError names the file."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); name a tokenizer.json") from None
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: not JSON ({err}); name a tokenizer.json") from None
    if not isinstance(raw, dict) or "model" not in raw:
        raise DataError(f"{path}: not a tokenizer.json of the tokenizers library (it has no 'model')")
    return raw


def _load(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises plain Exception for whatever its parser does not like
        why = " ".join(str(err).split())[:200]
        raise DataError(f"{path}: not a tokenizer that the tokenizers library can load ({why})") from None


def _token_bytes(raw: Json, vocabulary: dict[str, int], special: set[int], size: int) -> np.ndarray:
    """uint16[size]: bytes of text per token id. Exact for byte-level tokenizers and for SentencePiece's spelling."""
    kinds = {node.get("type") for part in ("pre_tokenizer", "decoder") for node in _nodes(raw.get(part))}
    added = {t["id"] for t in raw.get("added_tokens") or []}
    table = np.zeros(size, np.uint16)
    for token, number in vocabulary.items():
        if number in special:
            continue
        if "ByteLevel" in kinds and number not in added:
            table[number] = len(token)  # one character per byte
        elif "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token):
            table[number] = 1
        else:
            table[number] = len((token if number in added else token.replace("\u2581", " ")).encode())
    return table


def _nodes(part: Json) -> Iterator[dict[str, Any]]:
    """A component of a tokenizer.json and those it is made of."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from _nodes(value)
    elif isinstance(part, list):
        for value in part:
            yield from _nodes(value)
