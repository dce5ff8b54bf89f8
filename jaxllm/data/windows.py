"""Windows over the token stream of a source, and the documents in them.

Window w of S = seq_len tokens starts at token w * S. A 'shared' window is S + 1 tokens long: its last token is its last
label and the first input of the window after it (Amber). A 'disjoint' one is S tokens long, and its last token has no
label (K2). Tokens after the last whole window, the tail of the source, are never read.
"""

from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["shared", "disjoint"]


class TokenSpan(NamedTuple):
    """Tokens start..stop-1."""

    start: int
    stop: int


class DocumentWindows(NamedTuple):
    """The windows that hold any token of a document (an empty range if none does), and its tokens that lie in none."""

    windows: range
    tail_tokens: int


def window_tokens(seq_len: int, windows: Kind) -> int:
    """Tokens that a window reads."""
    return seq_len + 1 if windows == "shared" else seq_len


def windows_in(tokens: int, seq_len: int, windows: Kind) -> int:
    """Whole windows in a source of `tokens` tokens."""
    return max(tokens - (window_tokens(seq_len, windows) - seq_len), 0) // seq_len


def span(window: int, seq_len: int, windows: Kind) -> TokenSpan:
    """The tokens of a window, counted from the start of its source."""
    return TokenSpan(window * seq_len, window * seq_len + window_tokens(seq_len, windows))


def tail(tokens: int, seq_len: int, windows: Kind) -> TokenSpan:
    """The tokens at the end of a source that lie in no window."""
    count = windows_in(tokens, seq_len, windows)
    return TokenSpan(span(count - 1, seq_len, windows).stop if count else 0, tokens)


def document_at(ends: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The documents that tokens belong to, int64 [N]. ends [D]: where each document ends, never decreasing."""
    # Asked in the type of `ends`: of two types, numpy would first convert the whole (mapped) array.
    return np.searchsorted(ends, tokens.astype(ends.dtype), "right")


def document_span(ends: np.ndarray, document: int) -> TokenSpan:
    """The tokens of a document, counted from the start of its source."""
    return TokenSpan(int(ends[document - 1]) if document else 0, int(ends[document]))


def documents_of(ends: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """(first, last) document with a token in start..stop-1; both are in it."""
    first, last = document_at(ends, np.array([start, stop - 1])).tolist()
    return first, last


def windows_of_document(ends: np.ndarray, document: int, seq_len: int, windows: Kind) -> DocumentWindows:
    """Where a document lies: the inverse of `documents_of`. Both count a shared token in both of its windows."""
    tokens = int(ends[-1])
    start, stop = document_span(ends, document)
    unread = max(0, stop - max(start, tail(tokens, seq_len, windows).start))
    if start == stop:
        return DocumentWindows(range(0), 0)
    overlap = window_tokens(seq_len, windows) - seq_len
    first = max(start - overlap, 0) // seq_len
    last = min((stop - 1) // seq_len, windows_in(tokens, seq_len, windows) - 1)
    return DocumentWindows(range(first, last + 1), unread)
