"""Held-out scores: token-weighted, whatever the batch size; bytes counted by the tokenizer's table."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from configs.debug import debug
from jaxllm.assembly import Assembly, assemble
from jaxllm.data.batch import assemble as arrays_of
from jaxllm.evals.perplexity import HeldOut
from jaxllm.evals.unigram import unigram_entropy
from jaxllm.models.declare import init
from jaxllm.ops.cross_entropy import cross_entropy
from jaxllm.parallel.config import Mesh
from tests.data.fake_store import FakeReader, FakeStore

VOCAB, S = 128, 16


class Texts(FakeStore):
    """Sources whose token t stands for t % 5 bytes."""

    vocab_size = VOCAB
    token_bytes = (np.arange(VOCAB) % 5).astype(np.uint16)


@pytest.fixture(scope="module")
def parts() -> Assembly:
    base = debug()
    model = dataclasses.replace(base.model, vocab_size=VOCAB, layers=1)
    data = dataclasses.replace(base.data, seq_len=S)
    return assemble(dataclasses.replace(base, model=model, data=data, mesh=Mesh(dp=1)))


@pytest.fixture(scope="module")
def params(parts: Assembly) -> Any:
    return jax.jit(lambda: init(parts.declared, 3))()


def scorer(parts: Assembly, store: Any, **kw: Any) -> HeldOut:
    options = {"windows": None, "batch_size": 4} | kw
    return HeldOut(
        parts.declared,
        parts.context,
        store,
        parts.run.data,
        windows=options["windows"],
        batch_size=options["batch_size"],
        loss_chunks=2,
        rows=slice(0, options["batch_size"]),
        place=parts.place,
        replicated=parts.replicated,
    )


def store_of(documents: list[int]) -> Texts:
    return Texts([FakeReader("a", [40])], heldout=[FakeReader("a", documents)])


def test_the_score_is_the_plain_sum_over_all_heldout_labels(parts: Assembly, params: Any) -> None:
    store = store_of([30, 21, 33, 27])  # 111 tokens: 6 windows of 17 that share their boundary, 96 labels
    [score] = scorer(parts, store)(params)
    arrays = arrays_of(store.heldout["a"], np.arange(6), parts.run.data)
    model = parts.declared.bind(params)
    x_BSD, _ = model.hidden(arrays["inputs"], arrays["segments"], arrays["positions"], parts.context)
    _, loss_B = cross_entropy(x_BSD, model.head_VD(), arrays["labels"], arrays["loss_mask"], denominator=1.0)
    nats, labels = float(np.asarray(loss_B, np.float64).sum()), arrays["labels"][arrays["loss_mask"]]
    assert score.tokens == 96 == labels.size
    np.testing.assert_allclose(score.nats_per_token, nats / 96, rtol=1e-6)
    expected = nats / math.log(2) / int(Texts.token_bytes[labels].sum())
    np.testing.assert_allclose(score.bits_per_byte, expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 6, 16])
def test_the_score_does_not_depend_on_the_batch_size(parts: Assembly, params: Any, batch_size: int) -> None:
    store = store_of([30, 21, 33, 27])
    [score], [other] = scorer(parts, store)(params), scorer(parts, store, batch_size=batch_size)(params)
    assert other.tokens == score.tokens
    np.testing.assert_allclose(other.bits_per_byte, score.bits_per_byte, rtol=1e-6)


def test_the_number_of_windows_is_a_limit(parts: Assembly, params: Any) -> None:
    store = store_of([30, 21, 33, 27])
    assert scorer(parts, store, windows=2)(params)[0].tokens == 32
    assert scorer(parts, store, windows=999)(params)[0].tokens == 96


def test_a_source_without_a_whole_window_has_no_score(parts: Assembly, params: Any) -> None:
    assert scorer(parts, store_of([9]))(params) == []


def test_unigram_entropy_of_equal_frequencies_is_the_logarithm() -> None:
    [figure] = unigram_entropy(Texts([FakeReader("a", [100, 28])]))  # every token of the vocabulary once
    np.testing.assert_allclose(figure.nats_per_token, math.log(VOCAB), rtol=1e-12)
    text_bytes = int(Texts.token_bytes.sum())
    np.testing.assert_allclose(figure.bits_per_byte, math.log2(VOCAB) * VOCAB / text_bytes, rtol=1e-12)
