"""The decoder against an independent one, and what may and may not move its numbers."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.config import (
    Alibi,
    Attention,
    Capacity,
    GeGlu,
    Gelu,
    LayerKind,
    LayerNorm,
    LinearScaling,
    Model,
    Moe,
    NoPosition,
    ParallelNorm,
    PostNorm,
    PreNorm,
    QkNorm,
    RmsNorm,
    Rope,
    SandwichNorm,
    SwiGlu,
)
from jaxllm.models.context import Context
from jaxllm.models.decoder import describe
from jaxllm.ops.attention import Kernel
from jaxllm.ops.cross_entropy import cross_entropy
from jaxllm.parallel.config import Remat, RematPolicy
from tests.models.small import MODEL, hidden, logits_in_numpy, parameters

Array = np.ndarray[Any, Any]
Tree = Any

MODELS = {
    "grouped": MODEL,
    "tied": dataclasses.replace(MODEL, tied_embeddings=True),
    "no_position": dataclasses.replace(MODEL, position=NoPosition()),
    "one_kv_head": dataclasses.replace(MODEL, attention=Attention(heads=4, kv_heads=1, head_width=6)),
    "as_many_kv_heads": dataclasses.replace(MODEL, attention=Attention(heads=3, kv_heads=3, head_width=2)),
    "one_layer": dataclasses.replace(MODEL, layers=1),
}


def attention(**changes: Any) -> Attention:
    return dataclasses.replace(MODEL.attention, **changes)


# The parts that families are made of, two or three at a time.
PARTS: dict[str, dict[str, Any]] = {
    "layer_norm": {"norm": LayerNorm(), "position": Rope(theta=100.0, fraction=0.5)},
    "layer_norm_unbiased": {"norm": LayerNorm(bias=False), "ffn": Gelu(width=44, gelu="tanh", bias=False)},
    "norm_from_one": {"norm": RmsNorm(scale="from_one"), "ffn": GeGlu(width=44), "embedding_scale": 4.5},
    "depth_scaled": {"residual": PreNorm(depth_scaled=True), "attention": attention(biases=("q", "k", "v"))},
    "post_norm": {"residual": PostNorm(), "attention": attention(qk_norm=QkNorm(over="width"))},
    "sandwich_norm": {"residual": SandwichNorm(), "attention": attention(softcap=2.0, scale=0.2), "logit_softcap": 3.0},
    "parallel_norm": {
        "residual": ParallelNorm(),
        "norm": LayerNorm(),
        "attention": attention(biases=("q", "k", "v", "o")),
        "ffn": Gelu(width=44),
    },
    "qk_norm": {"attention": attention(qk_norm=QkNorm()), "ffn": SwiGlu(width=44, bias=True)},
    "adjacent_pairs": {
        "position": Rope(theta=100.0, fraction=0.5, pairs="adjacent", scaling=LinearScaling(factor=3.0)),
        "attention": attention(scale="linear"),
        "logit_scale": 0.14,
        "tied_embeddings": True,
    },
    "alibi": {"position": Alibi(), "attention": Attention(heads=8, kv_heads=2, head_width=4)},
    "window": {"pattern": (LayerKind(window=9),), "ffn": GeGlu(width=44, gelu="exact", bias=True)},
    "pattern": {
        "pattern": (LayerKind(window=9, position=Rope(theta=30.0)), LayerKind()),
        "attention": attention(qk_norm=QkNorm()),
    },
    "moe": {"ffn": Moe(experts=6, top_k=2, expert=SwiGlu(width=12)), "attention": attention(qk_norm=QkNorm())},
    "moe_sigmoid": {
        "ffn": Moe(
            experts=5,
            top_k=3,
            expert=GeGlu(width=7),
            shared=SwiGlu(width=9, bias=True),
            gate="sigmoid",
            scale=1.7,
            bias_rate=0.001,
        ),
        "residual": SandwichNorm(),
    },
    "moe_capacity": {
        "ffn": Moe(
            experts=4,
            top_k=2,
            expert=Gelu(width=12, bias=False),
            normalize=False,
            dispatch=Capacity(factor=0.8),
        ),
        "residual": ParallelNorm(),
    },
}
MODELS |= {name: dataclasses.replace(MODEL, **changes) for name, changes in PARTS.items()}


def batch(length: int, vocab_size: int = MODEL.vocab_size) -> tuple[Array, Array, Array]:
    """(inputs, segments, positions): two rows, the first of two documents, the second of one."""
    inputs = np.random.default_rng(length).integers(0, vocab_size, (2, length), dtype=np.int32)
    cut = length // 3
    segments = np.zeros((2, length), np.int32)
    segments[0, cut:] = 1
    positions = np.stack([np.r_[np.arange(cut), np.arange(length - cut)], np.arange(length)]).astype(np.int32)
    return inputs, segments, positions


def logits(model: Model, params: Tree, arrays: tuple[Array, Array, Array], context: Context) -> Array:
    x_BSD = hidden(model, params, *arrays, context)
    head_VD = describe(model).bind(params).head_VD()
    logits = np.asarray(x_BSD, np.float64) @ np.asarray(head_VD, np.float64).T
    cap = model.logit_softcap
    return logits if cap is None else np.asarray(cap * np.tanh(logits / cap))


@pytest.mark.parametrize(("name", "kernel"), [("grouped", "reference"), *((name, "blocks") for name in MODELS)])
def test_equals_the_independent_decoder(name: str, kernel: Kernel) -> None:
    model, arrays = MODELS[name], batch(140)
    params = parameters(model)
    expected = logits_in_numpy(model, params, *arrays)
    got = logits(model, params, arrays, Context(attention=kernel))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    "change",
    [{"segments": np.zeros((2, 70), np.int32)}, {"positions": 2 * batch(70)[2]}, {"inputs": batch(70)[0][::-1]}],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_batch_would_be_seen(change: dict[str, Array]) -> None:
    arrays, params = batch(70), parameters(MODEL)
    wrong = dict(zip(("inputs", "segments", "positions"), arrays, strict=True)) | change
    expected = logits_in_numpy(MODEL, params, **wrong)
    assert np.abs(logits(MODEL, params, arrays, Context()) - expected).max() > 0.05


@pytest.mark.parametrize("leaf", describe(MODEL).leaves, ids=lambda leaf: leaf.path)
def test_every_parameter_matters(leaf: Any) -> None:
    params, arrays = parameters(MODEL), batch(12)
    by_path = describe(MODEL).named(params)
    moved = by_path | {leaf.path: by_path[leaf.path] * 1.5}
    changed = describe(MODEL).tree(lambda each: moved[each.path])
    difference = logits(MODEL, changed, arrays, Context()) - logits(MODEL, params, arrays, Context())
    assert np.abs(difference).max() > 1e-3


def gradients(context: Context, length: int = 70) -> tuple[Array, dict[str, Array]]:
    declared, (inputs, segments, positions) = describe(MODEL), batch(length)
    labels = np.roll(inputs, -1, axis=1)

    def objective(params: Tree) -> tuple[jax.Array, jax.Array]:
        model = declared.bind(params)
        x_BSD, _ = model.hidden(jnp.asarray(inputs), jnp.asarray(segments), jnp.asarray(positions), context)
        mask_BS = jnp.ones(labels.shape, bool)
        return cross_entropy(x_BSD, model.head_VD(), jnp.asarray(labels), mask_BS, denominator=140.0, chunks=3)

    grads, loss_B = jax.jit(jax.grad(objective, has_aux=True))(parameters(MODEL))
    return np.asarray(loss_B), {path: np.asarray(g) for path, g in declared.named(grads).items()}


def assert_same_bits(ours: tuple[Array, dict[str, Array]], theirs: tuple[Array, dict[str, Array]]) -> None:
    np.testing.assert_array_equal(ours[0], theirs[0])
    for path in ours[1]:
        np.testing.assert_array_equal(ours[1][path], theirs[1][path], err_msg=path)


def assert_rounding(ours: tuple[Array, dict[str, Array]], theirs: tuple[Array, dict[str, Array]]) -> None:
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for path, exact in theirs[1].items():
        np.testing.assert_allclose(ours[1][path], exact, atol=5e-6 * np.abs(exact).max(), rtol=0, err_msg=path)


def test_recomputing_changes_no_bit_in_float32() -> None:
    kept = gradients(Context())
    for remat in get_args(RematPolicy):
        assert_same_bits(gradients(Context(remat=remat)), kept)


def test_recomputing_or_unrolling_the_fast_path_agrees_to_rounding() -> None:
    """XLA fuses its backward pass otherwise: remat and unroll may move bits, and both follow from the fingerprint."""
    kept = gradients(Context(attention="blocks"))
    for remat in get_args(RematPolicy):
        assert_rounding(gradients(Context(attention="blocks", remat=remat)), kept)
    for unroll in (2, 100):
        assert_rounding(gradients(Context(attention="blocks", unroll=unroll)), kept)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_spelled_products_agree_to_rounding(remat: RematPolicy) -> None:
    plain, spelled = Context(attention="blocks"), Context(attention="blocks", spelled_products=True, remat=remat)
    assert_rounding(gradients(spelled), gradients(plain))


def test_another_kernel_agrees_to_rounding_and_is_seen_not_to_be_the_same() -> None:
    reference, blocks = gradients(Context()), gradients(Context(attention="blocks"))
    assert_rounding(blocks, reference)
    with pytest.raises(AssertionError):
        assert_same_bits(blocks, reference)


def dots(remat: Remat, *, spelled: bool = False) -> int:
    """Matrix products in the whole of forward and backward pass."""
    declared, context = describe(MODEL), Context(attention="blocks", remat=remat, spelled_products=spelled)
    inputs, segments, positions = map(jnp.asarray, batch(140))

    def total(params: Tree) -> jax.Array:
        return declared.bind(params).hidden(inputs, segments, positions, context)[0].sum()

    return str(jax.make_jaxpr(jax.grad(total))(declared.abstract())).count("dot_general")


@pytest.mark.parametrize("spelled", [False, True])
def test_policies_recompute_what_they_say(spelled: bool) -> None:
    count = {remat: dots(remat, spelled=spelled) for remat in get_args(RematPolicy)}
    # full: the layer's 7 projections and attention's 4 products (2 blocks) again; dots: none of them.
    # qkv_attention: not q, k, v, nor attention.
    assert count["dots"] == count["none"]
    assert count["full"] == count["none"] + 7 + 4 - 1  # the last product of a layer is needed by nobody
    assert count["qkv_attention"] == count["none"] + 3
    assert count["none"] < count["dots_no_batch"] <= count["full"]


def test_bfloat16_stays_close() -> None:
    exact, low = gradients(Context()), gradients(Context(dtype="bfloat16", attention="blocks"))
    np.testing.assert_allclose(low[0], exact[0], rtol=2e-2)
    for path, gradient in exact[1].items():
        assert low[1][path].dtype == np.float32
        np.testing.assert_allclose(low[1][path], gradient, atol=0.1 * np.abs(gradient).max(), rtol=0, err_msg=path)
    assert hidden(MODEL, parameters(MODEL), *batch(70), Context(dtype="bfloat16")).dtype == jnp.bfloat16


@pytest.mark.parametrize("kernel", ["reference", "blocks"])
def test_the_future_and_other_documents_are_not_seen(kernel: Kernel) -> None:
    params, (inputs, segments, positions) = parameters(MODEL), batch(70)
    context = Context(attention=kernel)
    before = hidden(MODEL, params, inputs, segments, positions, context)
    changed = inputs.copy()
    changed[0, :23] = (changed[0, :23] + 1) % MODEL.vocab_size  # all of the first document of row 0
    changed[1, 50:] = (changed[1, 50:] + 1) % MODEL.vocab_size
    after = hidden(MODEL, params, changed, segments, positions, context)
    np.testing.assert_array_equal(after[0, 23:], before[0, 23:])
    np.testing.assert_array_equal(after[1, :50], before[1, :50])
    assert (np.abs(after[1, 50:] - before[1, 50:]).max(-1) > 0).all()


def test_a_token_outside_the_vocabulary_is_not_a_number() -> None:
    inputs, segments, positions = batch(12)
    inputs[0, 3] = MODEL.vocab_size
    x_BSD = hidden(MODEL, parameters(MODEL), inputs, segments, positions, Context())
    assert np.isnan(x_BSD[0, 3]).all()
    assert np.isfinite(x_BSD[1]).all()


def test_activations_are_offered_for_sharding_by_name() -> None:
    seen: set[tuple[str, ...]] = set()

    def note(x: jax.Array, *axes: str) -> jax.Array:
        assert x.ndim == len(axes)
        seen.add(axes)
        return x

    hidden(MODEL, parameters(MODEL), *batch(12), Context(shard=note))
    assert ("batch", "resid_seq", "embed") in seen
    assert ("batch", "seq", "heads", "head") in seen
    assert ("batch", "seq", "kv_heads", "head") in seen
    assert ("batch", "seq", "ffn") in seen
    assert ("vocab", "embed") in seen


def test_float8_points_the_same_way() -> None:
    """Its grain is 16 times that of bfloat16: so much further may gradients turn, and they do turn."""
    exact, low = gradients(Context()), gradients(Context(dtype="bfloat16", attention="blocks"))
    coarse = gradients(Context(dtype="bfloat16", attention="blocks", float8=True))
    np.testing.assert_allclose(coarse[0], low[0], rtol=5e-2)
    for path, gradient in exact[1].items():
        assert angle(low[1][path], gradient) < angle(coarse[1][path], gradient), path
        assert angle(coarse[1][path], gradient) < min(16 * angle(low[1][path], gradient), np.pi / 4), path


def angle(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (np.asarray(x, np.float64).ravel() for x in (one, other))
    return float(np.arccos(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
