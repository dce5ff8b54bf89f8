"""Windows, documents and the tail, against a scan of every token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.data.windows import (
    Kind,
    document_at,
    documents_of,
    span,
    tail,
    window_tokens,
    windows_in,
    windows_of_document,
)

KINDS: tuple[Kind, ...] = ("shared", "disjoint")
kinds = st.sampled_from(KINDS)


@pytest.mark.parametrize(
    ("tokens", "shared", "disjoint"),
    [(0, 0, 0), (1, 0, 0), (3, 0, 0), (4, 0, 1), (5, 1, 1), (8, 1, 2), (9, 2, 2), (40, 9, 10), (41, 10, 10)],
)
def test_whole_windows_of_four_tokens(tokens: int, shared: int, disjoint: int) -> None:
    assert windows_in(tokens, 4, "shared") == shared
    assert windows_in(tokens, 4, "disjoint") == disjoint


def test_shared_windows_share_their_boundary_token() -> None:
    assert [span(w, 4, "shared") for w in (0, 1, 7)] == [(0, 5), (4, 9), (28, 33)]
    assert [span(w, 4, "disjoint") for w in (0, 1, 7)] == [(0, 4), (4, 8), (28, 32)]


@given(tokens=st.integers(0, 60), seq_len=st.integers(2, 9), windows=kinds)
def test_windows_and_tail_cover_a_source(tokens: int, seq_len: int, windows: Kind) -> None:
    count = windows_in(tokens, seq_len, windows)
    covered = {t for w in range(count) for t in range(*span(w, seq_len, windows))}
    assert covered | set(range(*tail(tokens, seq_len, windows))) == set(range(tokens))
    assert covered.isdisjoint(range(*tail(tokens, seq_len, windows)))
    assert span(count, seq_len, windows).stop > tokens
    labels = [
        t + 1 for w in range(count) for t in range(w * seq_len, w * seq_len + window_tokens(seq_len, windows) - 1)
    ]
    assert len(set(labels)) == len(labels)
    if windows == "shared" and count:
        assert sorted(labels) == list(range(1, count * seq_len + 1))


@given(lengths=st.lists(st.integers(0, 25), min_size=1, max_size=12), seq_len=st.integers(2, 9), windows=kinds)
def test_documents_and_windows_agree_with_a_scan(lengths: list[int], seq_len: int, windows: Kind) -> None:
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    count = windows_in(len(owner), seq_len, windows)
    inside = [set(owner[slice(*span(w, seq_len, windows))].tolist()) for w in range(count)]
    assert document_at(ends, np.arange(len(owner))).tolist() == owner.tolist()
    for w in range(count):
        first, last = documents_of(ends, *span(w, seq_len, windows))
        assert (first, last) == (min(inside[w]), max(inside[w]))
    behind = owner[slice(*tail(len(owner), seq_len, windows))].tolist()
    for d in range(len(lengths)):
        found = windows_of_document(ends, d, seq_len, windows)
        assert list(found.windows) == [w for w in range(count) if d in inside[w]]
        assert found.tail_tokens == behind.count(d)


def test_a_shared_token_counts_in_both_windows() -> None:
    """Document 1 starts at token 4: the last label of window 0 and the first input of window 1."""
    ends = np.array([4, 10])
    assert windows_of_document(ends, 1, 4, "shared").windows == range(2)
    assert windows_of_document(ends, 1, 4, "disjoint").windows == range(1, 2)


def test_ends_of_any_integer_type_are_exact_beyond_2_to_the_53() -> None:
    """numpy compares uint64 with int64 as floats, which would put these tokens into the wrong document."""
    ends = np.array([2**53 + 1, 2**53 + 3])
    for dtype in (np.int64, np.uint64):
        found = document_at(ends.astype(dtype), np.array([2**53, 2**53 + 1, 2**53 + 2]))
        assert found.tolist() == [0, 1, 1]
