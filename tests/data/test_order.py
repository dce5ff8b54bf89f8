"""Order: what it promises by brute force over small universes, and that breaking each promise is noticed."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.core.errors import DataError
from jaxllm.data import order as order_module
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.data.mixture import Mixture
from jaxllm.data.order import Order, SourceSpan, StageSpan, build_order
from jaxllm.data.permutation import Permutation, key_of
from tools.make_golden_order import order_of

GOLDEN = json.loads((Path(__file__).parent / "golden_order.json").read_text())

# Stage boundaries that are no block boundaries, a source that is absent from a stage, up to a dozen epochs of another.
SOURCES = [SourceSpan("code", 37), SourceSpan("math", 11), SourceSpan("web", 403), SourceSpan("one", 1)]
STAGES = [
    StageSpan(330, (Fraction(1, 4), Fraction(1, 20), Fraction(7, 10), 0)),
    StageSpan(129, (Fraction(2, 5), Fraction(1, 5), Fraction(2, 5), 0)),
    StageSpan(50, (0, Fraction(5, 6), 0, Fraction(1, 6))),
    StageSpan(70, (1, 0, 2, 0)),
]
Row = tuple[int, int, int]


def small(seed: int = 17, block: int = 32, seq_len: int = 64, windows: str = "shared") -> Order:
    return Order(SOURCES, STAGES, block=block, seed=seed, seq_len=seq_len, windows=windows)


def all_rows(order: Order) -> list[Row]:
    rows = order.rows(range(order.total))
    return list(zip(rows.source.tolist(), rows.epoch.tolist(), rows.window.tolist(), strict=True))


def reference_rows(order: Order, stages: list[StageSpan], seq_len: int, windows: str) -> list[Row]:
    """The definition, a sample at a time."""
    drawn = [0] * len(order.sources)
    rows = []
    for i, stage in enumerate(stages):
        mixture = Mixture(stage.weights, stage.samples)
        for b, start in enumerate(range(0, stage.samples, order.block)):
            stop = min(start + order.block, stage.samples)
            before, after = mixture.taken(np.array([start, stop])).tolist()
            laid_out = []
            for k, source in enumerate(order.sources):
                for number in range(drawn[k] + before[k], drawn[k] + after[k]):
                    epoch, place = divmod(number, source.windows)
                    key = key_of(order.seed, "source", source.name, epoch, seq_len, windows)
                    laid_out.append((k, epoch, int(Permutation(source.windows, key)(place))))
            shuffle = Permutation(stop - start, key_of(order.seed, "block", i, b))
            rows += [laid_out[int(shuffle(offset))] for offset in range(stop - start)]
        for k, count in enumerate(mixture.taken(np.array([stage.samples]))[0].tolist()):
            drawn[k] += count
    return rows


# ---- what is promised, as checks that raise AssertionError ---------------------------------------------------------


def assert_no_repeats(order: Order) -> None:
    """Every window at most once per epoch; every epoch complete before the next."""
    seen = Counter(all_rows(order))
    assert max(seen.values()) == 1
    for k, source in enumerate(order.sources):
        sizes = Counter(epoch for (s, epoch, _) in seen if s == k)
        assert sorted(sizes) == list(range(len(sizes)))
        assert all(sizes[e] == source.windows for e in range(len(sizes) - 1))


def assert_quotas(order: Order, stages: list[StageSpan]) -> None:
    """At the end of every block and stage each source has given its quota, to the rounding of the mixture."""
    rows, start = all_rows(order), 0
    for stage in stages:
        shares = [Fraction(w) / sum(map(Fraction, stage.weights)) for w in stage.weights]
        for x in [*range(0, stage.samples, order.block), stage.samples]:
            counts = Counter(k for k, _, _ in rows[start : start + x])
            assert all(abs(counts[k] - x * share) <= 1 for k, share in enumerate(shares)), (x, counts)
        start += stage.samples


def assert_inverse(order: Order) -> None:
    """samples_of, for every window of every source, is what a scan of all rows finds."""
    where = defaultdict(list)
    for sample, (k, epoch, window) in enumerate(all_rows(order)):
        where[k, window].append((sample, epoch))
    for k, source in enumerate(order.sources):
        for window in range(source.windows):
            assert sorted(order.samples_of(k, window)) == where[k, window], (source, window)


def assert_epochs_differ(order: Order) -> None:
    """Two epochs of a source, and two sources of the same size, come in unrelated orders."""
    for block in (1, order.block):  # a block of one leaves the order of the windows bare
        spans = [SourceSpan("one", 37), SourceSpan("two", 37)]
        twins = Order(spans, [StageSpan(37 * 6, (1, 1))], block=block, seed=order.seed, seq_len=64, windows="shared")
        rows = all_rows(twins)
        passes = [[w for s, e, w in rows if (s, e) == (k, epoch)] for k in (0, 1) for epoch in (0, 1, 2)]
        assert all(sorted(p) == list(range(37)) for p in passes)
        assert all(a != b for i, a in enumerate(passes) for b in passes[:i])


# ---- that it holds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 32, 1024])
@pytest.mark.parametrize("windows", ["shared", "disjoint"])
def test_is_its_definition(block: int, windows: str) -> None:
    order = small(block=block, windows=windows)
    assert order.total == 579
    assert all_rows(order) == reference_rows(order, STAGES, 64, windows)


@pytest.mark.parametrize("block", [1, 7, 32, 1024])
def test_promises(block: int) -> None:
    order = small(block=block)
    assert_no_repeats(order)
    assert_quotas(order, STAGES)
    assert_inverse(order)
    assert_epochs_differ(order)


@settings(max_examples=15)
@given(data=st.data())
def test_promises_in_any_small_universe(data: st.DataObject) -> None:
    sources = [
        SourceSpan(f"s{i}", n) for i, n in enumerate(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)))
    ]
    weights = st.lists(st.integers(0, 9), min_size=len(sources), max_size=len(sources)).filter(any).map(tuple)
    stages = data.draw(st.lists(st.builds(StageSpan, st.integers(1, 90), weights), min_size=1, max_size=3))
    block, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 2**63 - 1))
    order = Order(sources, stages, block=block, seed=seed, seq_len=8, windows="shared")
    assert all_rows(order) == reference_rows(order, stages, 8, "shared")
    assert_no_repeats(order)
    assert_inverse(order)


def test_rows_in_any_selection_are_those_of_the_whole() -> None:
    order = small()
    rows, rng = all_rows(order), np.random.default_rng(0)
    chosen = rng.integers(0, order.total, 200)
    found = order.rows(chosen)
    assert list(zip(found.source, found.epoch, found.window, strict=True)) == [rows[i] for i in chosen]
    assert [x.dtype.name for x in (found.source, found.epoch, found.window)] == ["int32", "int64", "int64"]
    assert len(order.rows([])) == 0
    assert len(order.rows(5)) == 1


@pytest.mark.parametrize("hosts", [1, 2, 8, 64])
def test_hosts_read_parts_of_one_global_batch(hosts: int) -> None:
    order, batch = small(), 64
    for first in range(0, order.total - batch, batch):
        whole = order.rows(np.arange(first, first + batch))
        parts = [
            order.rows(np.arange(first + batch * h // hosts, first + batch * (h + 1) // hosts)) for h in range(hosts)
        ]
        for name in ("source", "epoch", "window"):
            assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))


def test_at_ten_to_the_thirteenth_tokens() -> None:
    """Forwards and back again at random samples of a run that nobody can list."""
    order = order_of(GOLDEN["orders"][1])
    samples = np.random.default_rng(0).integers(0, order.total, 50)
    rows = order.rows(samples)
    for sample, k, epoch, window in zip(samples.tolist(), rows.source, rows.epoch, rows.window, strict=True):
        assert (sample, epoch) in order.samples_of(int(k), int(window))


def test_many_epochs_of_a_tiny_source() -> None:
    order = Order([SourceSpan("tiny", 2)], [StageSpan(20_001, (1,))], block=64, seed=1, seq_len=8, windows="shared")
    assert_no_repeats(order)
    uses = order.samples_of(0, 0) + order.samples_of(0, 1)
    assert sorted(sample for sample, _ in uses) == list(range(20_001))


def test_depends_on_everything_it_should() -> None:
    rows = all_rows(small())
    assert rows != all_rows(small(seed=18))
    assert rows != all_rows(small(seq_len=128))
    assert rows != all_rows(small(windows="disjoint"))
    assert rows != all_rows(small(block=33))


def test_blocks_are_shuffled_differently() -> None:
    sources, stages = [SourceSpan("a", 1), SourceSpan("b", 1)], [StageSpan(640, (1, 1))] * 2
    order = Order(sources, stages, block=64, seed=0, seq_len=8, windows="shared")
    patterns = order.rows(range(1280)).source.reshape(20, 64)
    assert len(np.unique(patterns, axis=0)) == 20


def test_samples_and_windows_outside_are_refused() -> None:
    order = small()
    for samples in ([-1], [579], [0, 579]):
        with pytest.raises(IndexError):
            order.rows(samples)
    with pytest.raises(IndexError, match=r"'math' has windows 0\.\.10, not 11"):
        order.samples_of(1, 11)


# ---- from a config -------------------------------------------------------------------------------------------------


def data(*stages: Stage, block: int = 16) -> Data:
    return Data(store=StoreAt(path="nowhere"), seq_len=8, stages=stages, block=block)


def stage(name: str, steps: int, batch_size: int, **weights: float) -> Stage:
    mixture = tuple(Share(source=s, weight=w) for s, w in weights.items())
    return Stage(name=name, steps=steps, batch_size=batch_size, mixture=mixture)


def test_weights_are_the_decimals_that_were_written() -> None:
    """0.1 : 0.2 : 0.7 is exact in 10 samples; as binary fractions it is not."""
    built = build_order(data(stage("x", 10**6, 10, a=0.1, b=0.2, c=0.7), block=10), 3, {"a": 5, "b": 5, "c": 5})
    assert [built.drawn(k) for k in range(3)] == [10**6, 2 * 10**6, 7 * 10**6]
    assert Counter(built.rows(range(10**7 - 10, 10**7)).source.tolist()) == {0: 1, 1: 2, 2: 7}


def test_order_of_shares_does_not_matter() -> None:
    windows = {"a": 50, "b": 60}
    one = build_order(data(stage("x", 30, 4, a=0.3, b=0.7), stage("y", 5, 8, b=1.0)), 3, windows)
    two = build_order(data(stage("x", 30, 4, b=7, a=3), stage("y", 5, 8, b=2)), 3, windows)
    assert [s.name for s in one.sources] == ["a", "b"]
    assert all_rows(one) == all_rows(two)


def test_batch_size_within_a_stage_does_not_matter() -> None:
    windows = {"a": 50, "b": 60}
    assert all_rows(build_order(data(stage("x", 30, 4, a=1, b=2)), 3, windows)) == all_rows(
        build_order(data(stage("x", 10, 12, a=1, b=2)), 3, windows)
    )


def test_sources_that_cannot_be_drawn_from() -> None:
    with pytest.raises(DataError, match="no source 'prose'; did you mean 'prosa'"):
        build_order(data(stage("x", 1, 4, prose=1)), 3, {"prosa": 50})
    with pytest.raises(DataError, match="'a' has no whole window of seq_len=8"):
        build_order(data(stage("x", 1, 4, a=1)), 3, {"a": 0})


# ---- frozen --------------------------------------------------------------------------------------------------------


def assert_golden() -> None:
    for case in GOLDEN["orders"]:
        samples = case["samples"] if "rows" in case else range(*case["samples"])
        rows = order_of(case).rows(samples)
        columns = [rows.source.tolist(), rows.epoch.tolist(), rows.window.tolist()]
        if "rows" in case:
            assert columns == case["rows"]
        else:
            assert [column[: len(case["head"][0])] for column in columns] == case["head"]
            text = json.dumps(columns, separators=(",", ":"))
            assert hashlib.sha256(text.encode()).hexdigest() == case["sha256"]


def test_golden() -> None:
    assert_golden()


# ---- and that breaking it is noticed -------------------------------------------------------------------------------


def keys_without(position: int, tag: str) -> Callable[..., int]:
    """key_of that forgets one part of the keys of a kind."""
    return lambda *parts: key_of(*(p for i, p in enumerate(parts) if i != position or parts[1] != tag))


def test_mutation_same_permutation_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "key_of", keys_without(3, "source"))
    assert_no_repeats(small())  # still without replacement, which alone would not notice
    with pytest.raises(AssertionError):
        assert_epochs_differ(small())
    with pytest.raises(AssertionError):
        assert_golden()


@pytest.mark.parametrize(("position", "tag"), [(0, "source"), (0, "block"), (2, "source"), (2, "block"), (3, "block")])
def test_mutation_part_of_a_key_lost(monkeypatch: pytest.MonkeyPatch, position: int, tag: str) -> None:
    monkeypatch.setattr(order_module, "key_of", keys_without(position, tag))
    with pytest.raises(AssertionError):
        assert_golden()


def test_mutation_cursor_not_carried_across_stages() -> None:
    order = small()
    order._drawn[1:-1] = 0
    with pytest.raises(AssertionError):
        assert_no_repeats(order)


def test_mutation_cursor_shifted_by_one() -> None:
    order = small()
    order._drawn[1] += 1
    with pytest.raises(AssertionError):
        assert_inverse(order)


def test_mutation_quota_of_another_stage() -> None:
    order = small()
    order._mixtures[1] = Mixture(STAGES[0].weights, STAGES[1].samples)
    with pytest.raises(AssertionError):
        assert_quotas(order, STAGES)


def test_mutation_last_block_taken_for_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    order = small()
    honest = order._blocks

    def whole(stage: int, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before, edges, size = honest(stage, block)
        return before, edges, np.full_like(size, order.block)

    monkeypatch.setattr(order, "_blocks", whole)
    with pytest.raises((AssertionError, IndexError)):
        assert_no_repeats(order)


def test_mutation_inverse_reads_the_permutation_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Permutation, "inverse", Permutation.__call__)
    with pytest.raises(AssertionError):
        assert_inverse(small())
