"""Mixture: counts sum up, never go backwards, stay at their quotas, and are found again from the other side."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.mixture import Mixture

GOLDEN = json.loads((Path(__file__).parent / "golden_order.json").read_text())
positive = st.fractions(min_value=Fraction(1, 10**6), max_value=10**6)
weight_lists = st.lists(st.one_of(st.just(Fraction(0)), positive), min_size=1, max_size=9).filter(any)


def assert_apportioned(taken: np.ndarray, weights: list[Fraction]) -> None:
    """taken [x, source] for x = 0, 1, 2...: sums exact, no step back, near the quotas, exact where they are whole."""
    assert np.array_equal(taken.sum(axis=1), np.arange(len(taken)))
    assert set(np.unique(np.diff(taken, axis=0))) <= {0, 1}
    drift = Fraction(max(len(weights) - 1, 1).bit_length(), 2)  # half a sample per level of the tree
    for x, counts in enumerate(taken.tolist()):
        quotas = [x * w / sum(weights) for w in weights]
        assert all(abs(count - quota) <= drift for count, quota in zip(counts, quotas, strict=True))
        if all(q.denominator == 1 for q in quotas):
            assert counts == quotas


@settings(max_examples=40)
@given(weights=weight_lists)
def test_apportions(weights: list[Fraction]) -> None:
    assert_apportioned(Mixture(weights, 150).taken(np.arange(151)), weights)


@pytest.mark.parametrize("weights", [[7, 3], [70, 25, 5], [1, 1, 1, 1, 1], [1, 998, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_whole_quotas_are_exact(weights: list[int]) -> None:
    total = sum(weights)
    assert Mixture(weights, 10 * total).taken(np.array([total, 10 * total])).tolist() == [
        weights,
        [10 * w for w in weights],
    ]


@given(weights=weight_lists, samples=st.integers(1, 400))
def test_reached_is_where_the_count_is_reached(weights: list[Fraction], samples: int) -> None:
    mixture = Mixture(weights, samples)
    taken = mixture.taken(np.arange(samples + 1))
    for k in range(len(weights)):
        counts = np.arange(1, taken[-1, k] + 1)
        if len(counts):
            assert np.array_equal(mixture.reached(k, counts), np.searchsorted(taken[:, k], counts))


@given(weights=weight_lists, x=st.integers(0, 10**15))
def test_products_beyond_64_bits_are_exact(weights: list[Fraction], x: int) -> None:
    heavy = [w + Fraction(1, 10**16 + 61) if w else w for w in weights]
    mixture = Mixture(heavy, 10**15)
    counts = mixture.taken(np.array([x]))[0]
    assert counts.sum() == x
    for k, count in enumerate(counts.tolist()):
        assert abs(count - x * heavy[k] / sum(heavy)) <= 2
        if count:
            first = mixture.reached(k, np.array([count]))
            assert mixture.taken(first)[0, k] == count == mixture.taken(first - 1)[0, k] + 1


def test_a_source_without_weight_changes_nothing() -> None:
    x = np.arange(101)
    assert np.array_equal(Mixture([2, 0, 5, 3], 100).taken(x)[:, [0, 2, 3]], Mixture([2, 5, 3], 100).taken(x))


def test_floors_of_cumulated_shares_would_go_backwards() -> None:
    """Why the tree: the simpler formula takes samples back that a small source already gave."""
    cumulated = np.array([0, 5, 6, 10])
    simple = np.diff(cumulated * np.arange(101)[:, None] // 10, axis=1)
    with pytest.raises(AssertionError):
        assert_apportioned(simple, [Fraction(5), Fraction(1), Fraction(4)])
    assert np.diff(simple, axis=0).min() == -1


def test_nonsense_is_refused() -> None:
    for weights in ([], [0, 0], [1, -1]):
        with pytest.raises(ValueError, match="at least one positive"):
            Mixture(weights, 10)


def test_golden() -> None:
    for case in GOLDEN["mixtures"]:
        taken = Mixture([Fraction(w) for w in case["weights"]], case["samples"]).taken(np.array(case["x"]))
        assert taken.tolist() == case["taken"]
