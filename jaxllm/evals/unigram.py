"""The entropy of single tokens: what a model that knows only frequencies would reach."""

from dataclasses import dataclass

import numpy as np

from jaxllm.data.store import SourceReader, Store

_CHUNK = 1 << 24  # tokens counted at a time
_MOST = 1 << 27  # tokens of a source that are counted; the entropy of its beginning is that of the whole, nearly


@dataclass(frozen=True, kw_only=True)
class Unigram:
    """Entropy of a source's training tokens: nats per token, and bits per UTF-8 byte."""

    source: str
    nats_per_token: float
    bits_per_byte: float


def unigram_entropy(store: Store) -> list[Unigram]:
    """One figure per source, from the token counts of (the first 134 million tokens of) its training documents."""
    return [_entropy(name, reader, store) for name, reader in store.sources.items()]


def _entropy(name: str, reader: SourceReader, store: Store) -> Unigram:
    counts = np.zeros(store.vocab_size, np.int64)
    tokens = min(reader.tokens, _MOST)
    for start in range(0, tokens, _CHUNK):
        counts += np.bincount(reader.read(start, min(start + _CHUNK, tokens)), minlength=store.vocab_size)
    share = counts[counts > 0] / counts.sum()
    nats = float(-(share * np.log(share)).sum())
    text_bytes = int((counts * store.token_bytes.astype(np.int64)).sum())
    return Unigram(
        source=name, nats_per_token=nats, bits_per_byte=nats / np.log(2) * int(counts.sum()) / max(text_bytes, 1)
    )
